"""How fast does a prefix get into the cache service and back, beside what memory and a wire can do?
And how soon is a first token there, cold and from every tier, beside plain transformers?

Goals: figures that mean something on a shared machine: ours, the limit and the peers take turns in
the same run, each moves the same bytes and verifies them, and what counts are the ratios of one
turn. What is not installed is named as absent.

Non-goals: tuning; the disk alone (`kvtier bench storage` measures it).
"""

__all__: list[str] = []
