"""The blocks of a trace as the tiers see them: number, name, parent."""

import numpy as np

from cache_service.replay.trace import NO_BLOCK

__all__ = ["Tree"]


class Tree:
    """Every block that the trace asks for. Read only."""

    def __init__(self, parents: list[int]) -> None:
        self.parents = parents
        self.names: list[int] = _mixed(len(parents)).tolist()
        """64 bits that stand for the block hash."""
        self._parent_column = np.array(parents, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.parents)

    def stranded(self, present: bytearray) -> int:
        """How many of `present` have a parent that is not."""
        here = np.frombuffer(present, dtype=np.uint8) > 0
        parents = self._parent_column
        return int(np.count_nonzero(here & (parents != NO_BLOCK) & ~here[parents]))


def _mixed(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """SplitMix64 of the numbers: evenly spread, as block hashes are."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
