"""`kvtier demo`: the whole way, once, on a real document and with a crash in the middle.

Goals: show a newcomer what the product does, and prove it: every figure comes from a reply, a
statistic or the ledger of real processes, every promise is a named check. Non-goals: benchmarking.
"""

__all__: list[str] = []
