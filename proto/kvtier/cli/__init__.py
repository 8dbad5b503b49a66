"""The `kvtier` command: a client of the contract like any other.

It starts services as separate processes and speaks gRPC to them; it imports no room. Rooms bring
their own commands through the entry-point group `kvtier.commands`.
"""

__all__: list[str] = []
