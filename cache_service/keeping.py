"""Keeping: which blocks pins name, and which of their copies may not leave for room.

    names      hash -> how many pins name it, cached or not; written by `Pins`
    kept       a row whose block is named                          (a column)
    withheld   kept rows whose last copy is in host memory: no victims, as far as the bound allows

A kept block may leave host memory where the SSD has it, and is written again there when its segment
is recycled. Withheld blocks lie in at most a share of the arena's extents, so that there is always
room for others, of every size: what is past that is kept as far as it goes.

Invariants: a row is kept exactly while its block is cached and named; a named block's ancestors are
named too; withheld rows are kept, in host memory alone, and in `extents_max` extents at most.
A part of the index; event loop only.
"""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from kvtier.keys import BlockHash
from storage.tier import PAGE_BYTES, SegmentId

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Keeping"]


class Keeping:
    """What pins mean for the index."""

    def __init__(self, tree: BlockTree, extent_bytes: int) -> None:
        self._tree = tree
        self._extent_pages = extent_bytes // PAGE_BYTES
        self.extents_max = 0
        """Set by `Pins`."""
        self.names: Counter[BlockHash] = Counter()
        self._withheld: dict[int, int] = {}
        """Row -> its extent."""
        self._extents: Counter[int] = Counter()

    def kept(self, row: int) -> bool:
        return bool(self._tree.columns.kept[row])

    def withheld(self, row: int) -> bool:
        return row in self._withheld

    @property
    def withheld_rows(self) -> list[int]:
        """Blocks that only host memory has and that may not leave it."""
        return list(self._withheld)

    def extents_with(self, rows: "NDArray[np.int64]") -> int:
        """Extents that would hold withheld blocks, were these kept too."""
        columns = self._tree.columns
        pages = columns.array("slab_page")[rows]
        alone = (pages != NOWHERE) & (columns.array("segment")[rows] == NOWHERE)
        mine = (pages[alone].astype(np.int64) // self._extent_pages).tolist()
        return len(self._extents.keys() | set(mine))

    def segment_bytes(self) -> dict[SegmentId, int]:
        """Bytes of kept blocks' records, by segment."""
        if not self.names:
            return {}
        columns, high = self._tree.columns, self._tree.directory.row_high
        segments = columns.array("segment")[:high]
        rows = np.flatnonzero((columns.array("kept")[:high] != 0) & (segments != NOWHERE))
        if not len(rows):
            return {}
        stored = columns.array("stored_bytes")[rows].astype(np.int64)
        sums = np.bincount(segments[rows], PAGE_BYTES * (1 + -(-stored // PAGE_BYTES)))
        return {SegmentId(number): int(sums[number]) for number in np.flatnonzero(sums).tolist()}

    # -- written by the index ----------------------------------------------------------------------

    def entered(self, row: int) -> None:
        """A block came into the cache."""
        if self.names and self._tree.block_hash(row) in self.names:
            self._tree.columns.kept[row] = 1

    def look(self, row: int) -> None:
        """A copy of the block came or left, or a pin did."""
        columns = self._tree.columns
        wanted = (
            columns.kept[row]
            and columns.cached[row]
            and columns.slab_page[row] != NOWHERE
            and columns.segment[row] == NOWHERE
        )
        if row in self._withheld:
            if not wanted:
                self._let_go(row)
        elif wanted:
            extent = columns.slab_page[row] // self._extent_pages
            if extent in self._extents or len(self._extents) < self.extents_max:
                self._withheld[row] = extent
                self._extents[extent] += 1

    def _let_go(self, row: int) -> None:
        extent = self._withheld.pop(row)
        self._extents[extent] -= 1
        if not self._extents[extent]:
            del self._extents[extent]

    def check_integrity(self) -> None:
        """Walks everything."""
        tree, columns = self._tree, self._tree.columns
        for row in tree:
            named = tree.block_hash(row) in self.names
            assert self.kept(row) == named
            parent = tree.parent(row)
            assert not named or parent == NOWHERE or self.kept(parent), "its ancestors are named"
        for row, extent in self._withheld.items():
            assert self.kept(row)
            assert tree.cached(row)
            assert tree.in_host(row)
            assert not tree.on_ssd(row)
            assert extent == columns.slab_page[row] // self._extent_pages
        assert Counter(self._withheld.values()) == self._extents
        assert len(self._extents) <= self.extents_max
        assert all(count > 0 for count in self.names.values())
