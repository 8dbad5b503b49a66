"""How fast is the SSD tier, beside what the disk can do?

Goals: figures that mean something on a shared machine: our tier, fio and RocksDB take turns on the
same file system, in the same run, and what counts are the ratios of one turn. What a figure leaves
out is said with it.

Non-goals: tuning; deciding what is fast enough (the limits are shown beside the figures).
"""

__all__: list[str] = []
