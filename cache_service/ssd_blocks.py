"""The SSD tier's live blocks as a scrub wants to see them, over the index and the writer.

Invariant: a block is taken out of the index first and forgotten on disk after; see `forgetting.py`.
Event loop only; a segment's blocks are made into records one at a time, as they are asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cache_service.block_tree import ABSENT
from cache_service.index import BlockIndex
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.ssd.format import record_bytes
from storage.tier import BlockRecord, SegmentId, SsdLocation

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["LiveSsdBlocks"]


class LiveSsdBlocks:
    """`forget` takes hashes whose records are to be forgotten."""

    def __init__(
        self,
        ssd: "SsdTier",
        index: BlockIndex,
        forget: Callable[[Sequence[BlockHash]], None],
    ) -> None:
        self._ssd = ssd
        self._index = index
        self._forget = forget

    def segment_ids(self) -> list[SegmentId]:
        """The oldest generation first: what lay longest has had most time to rot."""
        used = [s for s in self._ssd.segments() if s.state != "free"]
        return [s.segment_id for s in sorted(used, key=lambda s: (s.generation, s.segment_id))]

    def in_segment(self, segment_id: SegmentId) -> Iterator[tuple[BlockRecord, SsdLocation]]:
        """Live blocks in rising order of offset. What leaves meanwhile is left out."""
        tree = self._index.tree
        for row in self._index.segments.rows(segment_id):
            if tree.cached(row) and tree.segment(row) == segment_id:
                yield tree.ssd_record(row), tree.location(row)

    def holds(self, record: BlockRecord, location: SsdLocation) -> bool:
        tree = self._index.tree
        row = tree.find(record.block_hash)
        return row != ABSENT and tree.on_ssd(row) and tree.location(row) == location

    def total(self) -> tuple[int, int]:
        """Blocks, and their bytes on the disk, at most: a codec may have made them fewer."""
        count = self._index.ssd_count
        return count, self._index.ssd_payload_bytes + count * record_bytes(0)

    def drop(self, block_hash: BlockHash, reason: MissReason) -> int:
        """Takes a block and what continues it off the SSD; how many left."""
        tree = self._index.tree
        row = tree.find(block_hash)
        if row == ABSENT or not tree.on_ssd(row):
            return 0
        forgotten = self._index.drop_ssd(row, reason)
        self._forget(forgotten)
        return len(forgotten)
