"""What every part of kvtier agrees on: the wire contract, the names of blocks, and how to serve it.

Goals: one spelling of block hashes (`keys`), of errors on the wire (`errors`), of settings
(`settings`) and of a gRPC server's manners (`serving`), shared by all processes; the `kvtier`
command (`cli`), which is a client of the contract like any other.

Non-goals: knowing how blocks are stored, models run or prices applied. This package imports no
other room.
"""

__all__: list[str] = []
