"""What the rooms' benchmarks share: figures, tables, a cache service to measure.

Goals: the same words, units and marks in every table; a measured service is a real process with
its own clock. Non-goals: deciding what is measured, which each room does for itself.
"""

__all__: list[str] = []
