"""UnitEnds: the blocks at which a hit may end, for whoever matches whole prefix units only.

    stored with a mark, or where a second chain parts from it -> an end
    an end leaves the cache                                   -> the block before it is one
    a block goes to the SSD                                   -> its mark goes along
    a mark comes to a block that is there                     -> it is written down soon

Invariant: none that matters to correctness: a mark too many or too few makes a hit longer or
shorter. Written by the index and the storing side, event loop only.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import ABSENT, NOWHERE, BlockTree
from kvtier.keys import BlockHash

if TYPE_CHECKING:
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["UnitEnds"]


class UnitEnds:
    """A mark a block."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree
        self._unsaved: set[int] = set()
        """Rows whose blocks are on the SSD without their mark; some may be other blocks' by now."""

    @property
    def unsaved_count(self) -> int:
        return len(self._unsaved)

    def mark(self, rows: Iterable[int]) -> None:
        """Blocks of a chain that end units; ABSENT and NOWHERE are passed over."""
        ends = self._tree.columns.unit_end
        for row in rows:
            if row not in (ABSENT, NOWHERE) and not ends[row]:
                ends[row] = 1
                if self._tree.on_ssd(row):
                    self._unsaved.add(row)

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
        if self._tree.columns.unit_end[row]:
            self.mark([self._tree.parent(row)])

    # -- on the SSD --------------------------------------------------------------------------------

    def to_write(self, rows: Iterable[int]) -> frozenset[BlockHash]:
        """Those of blocks about to be written, anew or again, that end units."""
        ends = self._tree.columns.unit_end
        return frozenset(self._tree.block_hash(row) for row in rows if ends[row])

    def written(self, row: int, marked: frozenset[BlockHash]) -> None:
        """A block is on the SSD now, with what `to_write` said."""
        if self._tree.columns.unit_end[row] and self._tree.block_hash(row) not in marked:
            self._unsaved.add(row)

    def take_unsaved(self, count_max: int) -> Sequence[BlockHash]:
        """Some blocks whose marks are to be written down; they are the caller's now."""
        tree, hashes = self._tree, list[BlockHash]()
        while self._unsaved and len(hashes) < count_max:
            row = self._unsaved.pop()
            if tree.cached(row) and tree.on_ssd(row) and tree.columns.unit_end[row]:
                hashes.append(tree.block_hash(row))
        return hashes

    def recover(self, found: "RecoveredColumns") -> None:
        """What the SSD said. What a chain ends with is an end as well: of a unit that lost its last
        blocks. Where nothing is marked, as in stores of before, forks are."""
        parents = found.parent_row[found.parent_row >= 0]
        children = np.bincount(parents, minlength=len(found))
        ends = found.unit_end | (children == 0)
        if not found.unit_end.any():
            ends |= children > 1
        self._tree.columns.array("unit_end")[: len(found)] = ends
