"""Drivers of other caches, run by an interpreter that has their packages.

Goals: a peer does what ours does, with its own best calls, from memory that suits it, in the same
turns. Nothing here imports more of this project than `worker.bench.peers`.

Non-goals: installing a peer; a peer that is not there is named as absent.
"""

__all__: list[str] = []
