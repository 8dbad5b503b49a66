"""UnitEnds: the blocks at which a hit may end, for whoever matches whole prefix units only.

    stored with a mark, or where a second chain parts from it -> an end
    an end leaves the cache                                   -> the block before it is one

Invariant: none that matters to correctness: a mark too many or too few makes a hit longer or
shorter. Marks are not on the SSD; of what a start finds there, the ends of chains and the forks are
units' ends. Written by the index and the storing side, event loop only.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import ABSENT, NOWHERE, BlockTree

if TYPE_CHECKING:
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["UnitEnds"]


class UnitEnds:
    """A mark a block."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree

    def mark(self, rows: Iterable[int]) -> None:
        """Blocks of a chain that end units; ABSENT and NOWHERE are passed over."""
        ends = self._tree.columns.unit_end
        for row in rows:
            if row not in (ABSENT, NOWHERE):
                ends[row] = 1

    def whole_count(self, rows: NDArray[np.int64]) -> int:
        """How many of a chain's first blocks are whole units."""
        ends = np.flatnonzero(self._tree.columns.array("unit_end")[rows])
        return int(ends[-1]) + 1 if len(ends) else 0

    def leave(self, rows: NDArray[np.int64]) -> None:
        """Blocks that continue each other, the last one first, leave: what is before them ends the
        unit that they were part of."""
        if self._tree.columns.array("unit_end")[rows].any():
            self.mark([self._tree.parent(int(rows[-1]))])

    def leave_one(self, row: int) -> None:
        columns = self._tree.columns
        if columns.unit_end[row] and columns.parent[row] != NOWHERE:
            columns.unit_end[columns.parent[row]] = 1

    def recover(self, found: "RecoveredColumns") -> None:
        parents = found.parent_row[found.parent_row >= 0]
        children = np.bincount(parents, minlength=len(found))
        self._tree.columns.array("unit_end")[: len(found)] = children != 1
