"""SegmentLoads: which blocks lie in which segment, and what those of a segment are worth together.

The blocks of a segment hang in a doubly linked list through two columns, so a block comes, goes and
moves in O(1), and recycling a segment looks at that segment alone. Written by the index, on the
event loop.
"""

from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from storage.policy.order import EvictionOrder
from storage.tier import PAGE_BYTES, SegmentId, SsdLocation

if TYPE_CHECKING:
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["SegmentLoads"]


class _Load:
    """One segment with live blocks. `worth` is the sum of its blocks' worths."""

    __slots__ = ("count", "first", "worth")

    def __init__(self) -> None:
        self.first = NOWHERE
        self.count = 0
        self.worth = 0


class SegmentLoads:
    """The live blocks of all segments. A block's worth is asked of `order`."""

    def __init__(self, tree: BlockTree, order: EvictionOrder) -> None:
        self._tree = tree
        self._order = order
        self._loads: dict[SegmentId, _Load] = {}

    def put(self, row: int, location: SsdLocation) -> None:
        """The block's record is at `location`. REQUIRES: it is in the order, in no segment."""
        columns = self._tree.columns
        known = self._tree.generations.setdefault(location.segment_id, location.generation)
        assert known == location.generation, "live records of an older generation"
        columns.record_page[row] = location.offset // PAGE_BYTES
        columns.ssd_checksum[row] = location.checksum
        columns.stored_bytes[row] = location.stored_bytes
        self._link(row, location.segment_id)

    def recover(self, found: "RecoveredColumns") -> None:
        """Enters every recovered block. REQUIRES: tree and order have them, in rows 0 to n-1."""
        columns, count = self._tree.columns, len(found)
        for name in ("next_in_segment", "previous_in_segment"):
            columns.array(name)[:count] = NOWHERE
        columns.array("segment")[:count] = found.segment_id
        columns.array("record_page")[:count] = found.offset // PAGE_BYTES
        columns.array("ssd_checksum")[:count] = found.checksum
        columns.array("stored_bytes")[:count] = found.stored_bytes
        segments = found.segment_id.astype(np.int64)
        first = columns.chain(
            "next_in_segment",
            "previous_in_segment",
            columns.grouped(np.arange(count), segments),
            found.segment_id,
        )
        counts = np.bincount(segments)
        worths = np.bincount(segments, self._order.worths(np.arange(count)))
        for row in first.tolist():
            segment_id = SegmentId(int(segments[row]))
            load = self._loads[segment_id] = _Load()
            load.first, load.count = row, int(counts[segment_id])
            load.worth = int(worths[segment_id])
            self._tree.generations[segment_id] = int(found.segment_generations[segment_id])

    def _link(self, row: int, segment_id: SegmentId) -> None:
        columns = self._tree.columns
        assert columns.segment[row] == NOWHERE
        load = self._loads.setdefault(segment_id, _Load())
        columns.segment[row] = segment_id
        columns.previous_in_segment[row] = NOWHERE
        columns.next_in_segment[row] = load.first
        if load.first != NOWHERE:
            columns.previous_in_segment[load.first] = row
        load.first = row
        load.count += 1
        load.worth += self._order.worth(row)

    def take(self, row: int) -> None:
        """The block has no record any more, or will have another. REQUIRES: still in the order."""
        columns = self._tree.columns
        segment_id = SegmentId(columns.segment[row])
        load = self._loads[segment_id]
        before, after = columns.previous_in_segment[row], columns.next_in_segment[row]
        if before == NOWHERE:
            load.first = after
        else:
            columns.next_in_segment[before] = after
        if after != NOWHERE:
            columns.previous_in_segment[after] = before
        columns.segment[row] = NOWHERE
        load.count -= 1
        load.worth -= self._order.worth(row)
        if not load.count:
            del self._loads[segment_id]
            del self._tree.generations[segment_id]

    def use(self, row: int) -> None:
        """Counts a use of a block on the SSD."""
        load = self._loads[SegmentId(self._tree.columns.segment[row])]
        before = self._order.worth(row)
        self._order.use(row)
        load.worth += self._order.worth(row) - before

    def rows(self, segment_id: SegmentId) -> list[int]:
        """Blocks of a segment in the order in which they were written."""
        columns = self._tree.columns
        load = self._loads.get(segment_id)
        rows = []
        row = load.first if load is not None else NOWHERE
        while row != NOWHERE:
            rows.append(row)
            row = columns.next_in_segment[row]
        rows.sort(key=lambda each: columns.record_page[each])
        return rows

    def worth(self, segment_id: SegmentId) -> int:
        """What a segment's live blocks are worth above the clock, under the policy."""
        load = self._loads.get(segment_id)
        return 0 if load is None else load.worth - load.count * self._order.clock

    def check_integrity(self) -> None:
        tree = self._tree
        for segment_id, load in self._loads.items():
            rows = self.rows(segment_id)
            assert len(rows) == load.count > 0
            assert all(tree.segment(row) == segment_id for row in rows)
            assert load.worth == sum(self._order.worth(row) for row in rows), segment_id
        assert set(self._loads) == set(tree.generations)
        total = sum(load.count for load in self._loads.values())
        assert total == len(self._order) == sum(tree.on_ssd(row) for row in tree)
