"""Recycler: frees a segment of the SSD ahead of the writer.

    plan -> drop in the index -> relog what stays -> wait for reads -> forget -> recycle

Invariant: from the moment a block is dropped in the index nobody can find it, and only then is its
record forgotten and its segment written over; a crash at any point leaves every record that the
index on disk still names in place. Called by the writer, one at a time; event loop only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cache_service.budget_note import Moment
from cache_service.forgetting import ForgetQueue
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.recycling import RecyclePlan, plan_recycling
from cache_service.segment_reads import SegmentReads
from cache_service.ssd_admission import SsdAdmission
from cache_service.ssd_health import SsdHealth
from cache_service.suspects import Suspects
from kvtier.blocks import MissReason, Tier
from storage.errors import SegmentsFullError, TierIOError
from storage.tier import SegmentId

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["Recycler"]

RELOG_BLOCKS = 16
"""Blocks written again in one step; between steps the disk serves reads."""


class Recycler:
    """Recycles one segment at a time."""

    def __init__(
        self,
        ssd: "SsdTier",
        index: BlockIndex,
        reads: SegmentReads,
        forgotten: ForgetQueue,
        suspects: Suspects,
        health: SsdHealth,
        relog_share_max: float,
        admission: SsdAdmission,
        listener: CacheListener,
    ) -> None:
        self._ssd = ssd
        self._index = index
        self._reads = reads
        self._forgotten = forgotten
        self._suspects = suspects
        self._health = health
        self._relog_share_max = relog_share_max
        self._admission = admission
        self._listener = listener
        self.evicted_count = 0

    async def run(self) -> bool:
        """Frees a segment; False when none can be freed now. Raises TierIOError."""
        plan = plan_recycling(
            self._index, self._ssd.segments(), self._ssd.record_bytes, self._relog_share_max
        )
        if plan is None:
            return False
        evicted_before = self.evicted_count
        for row in plan.drop:
            self._drop(row, plan.segment_id, MissReason.EVICTED)
        self._index.age_ssd(plan.age_to)
        relogged = await self._relog(plan)
        dropped = self.evicted_count - evicted_before
        self._listener.blocks_evicted(Tier.SSD, dropped)
        if relogged is None:
            return False
        await self._reads.idle(plan.segment_id)
        await self._forgotten.flush()
        await self._ssd.recycle(plan.segment_id)
        self._health.succeeded()
        self._listener.segment_recycled(relogged, dropped)
        return True

    async def _relog(self, plan: RecyclePlan) -> int | None:
        """Writes again what stays. None when there is no room for what must stay."""
        count = 0
        for start in range(0, len(plan.keep), RELOG_BLOCKS):
            try:
                count += await self._relog_batch(plan, start)
            except SegmentsFullError:
                return count if self._drop_rest(plan, start) else None
        return count

    async def _relog_batch(self, plan: RecyclePlan, start: int) -> int:
        batch = plan.keep[start : start + RELOG_BLOCKS]
        try:
            return await self._move(batch, plan.segment_id)
        except TierIOError:
            pass
        # One of them cannot be read, or the disk takes nothing: find out which.
        count = 0
        for row in batch:
            block_hash = self._index.tree.block_hash(row)
            try:
                count += await self._move([row], plan.segment_id)
            except TierIOError:
                if not self._suspects.failed(block_hash):
                    raise
                self._drop(row, plan.segment_id, MissReason.UNAVAILABLE)
            else:
                self._health.succeeded()
        return count

    async def _move(self, batch: Sequence[int], segment_id: SegmentId) -> int:
        """Relogs blocks that are still in the segment; returns how many have a new place."""
        tree = self._index.tree
        rows = [row for row in batch if tree.segment(row) == segment_id]
        if not rows:
            return 0
        items = [(tree.ssd_record(row), tree.location(row)) for row in rows]
        # Before they are written, so that the note that goes along knows of it.
        size = sum(self._ssd.record_bytes(location.stored_bytes) for _, location in items)
        self._admission.charge(size)
        self._ssd.note(self._admission.note(Moment.now()))
        try:
            found = await self._ssd.relog(items, self._index.unit_ends.to_write(rows))
        except SegmentsFullError:
            self._admission.charge(-size)  # nothing was written
            raise
        moved = 0
        for row, (record, _), after in zip(rows, items, found, strict=True):
            if tree.segment(row) != segment_id:
                # It left the SSD while it was written again: the new record is an orphan.
                self._forgotten.add([record.block_hash])
            elif after is None:
                self._listener.block_corrupt(Tier.SSD)
                self._drop(row, segment_id, MissReason.CORRUPT)
            else:
                self._index.move_ssd(row, after)
                moved += 1
        return moved

    def _drop_rest(self, plan: RecyclePlan, start: int) -> bool:
        """No room to write more again: what may leave leaves. False when something must stay."""
        protected, rest = self._index.protected(), plan.keep[start:]
        for row in rest:
            if row not in protected and not self._index.keeping.kept(row):
                self._drop(row, plan.segment_id, MissReason.EVICTED)
        return all(self._index.tree.segment(row) != plan.segment_id for row in rest)

    def _drop(self, row: int, segment_id: SegmentId, reason: MissReason) -> None:
        """Drops the block that was planned for.

        A row whose block left meanwhile may be another block's by now, but never one in this
        segment: nothing is written into a sealed segment.
        """
        if self._index.tree.segment(row) == segment_id:
            dropped = self._index.drop_ssd(row, reason)
            self._forgotten.add(dropped)
            self.evicted_count += len(dropped)
