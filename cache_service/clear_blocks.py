"""ClearBlocks: which live blocks lie on the SSD in clear, in a store that encrypts.

They are those from before it did: behind an offset of each segment there is none, so nothing is
kept for a block. Event loop only; changes nothing.
"""

from typing import TYPE_CHECKING

import numpy as np

from cache_service.index import BlockIndex
from storage.tier import PAGE_BYTES

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["ClearBlocks"]


class ClearBlocks:
    """Of one tier."""

    def __init__(self, ssd: "SsdTier", index: BlockIndex) -> None:
        self._ssd = ssd
        self._tree = index.tree

    def holds(self, row: int) -> bool:
        """Whether the block in the row is on the SSD, and in clear there."""
        tree, ends = self._tree, self._ssd.clear_ends
        if not ends.size or not tree.on_ssd(row):
            return False
        columns = tree.columns
        end: int = ends[columns.segment[row]]
        return columns.record_page[row] * PAGE_BYTES < end

    def count(self) -> int:
        """All of them: some milliseconds for a million blocks, and nothing where there are none."""
        ends = self._ssd.clear_ends
        if not ends.any():
            return 0
        high = self._tree.directory.row_high
        columns = self._tree.columns
        segment = columns.array("segment")[:high]
        live = np.flatnonzero((columns.array("cached")[:high] != 0) & (segment >= 0))
        offsets = columns.array("record_page")[live].astype(np.int64) * PAGE_BYTES
        return int((offsets < ends[segment[live]]).sum())
