"""Policies of a tier: which block leaves, which may enter. Pure; trace replay runs the same code.

Goals: decide in O(1) or O(log n), keep a few bytes a block in growable columns, give the same
answers for the same calls.

Non-goals: knowing trees, leases or bytes. The owner says which blocks may leave (the leaves that
nobody holds) and applies what is decided. Nothing here logs, counts or reads a clock.
"""

__all__: list[str] = []
