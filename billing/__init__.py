"""The till: loses nothing, doubles nothing.

Goals: every usage event in the ledger exactly once; amounts that anyone can recompute from the
events and the price book; corrections that add and never edit.

Non-goals: serving requests, deciding what is cached, collecting money.
"""

__all__: list[str] = []
