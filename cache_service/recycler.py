"""Recycler: frees a segment of the SSD ahead of the writer.

    plan -> drop in the index -> relog what stays -> wait for reads -> forget -> recycle

Invariant: from the moment a block is dropped in the index nobody can find it, and only then is its
record forgotten and its segment written over; a crash at any point leaves every record that the
index on disk still names in place. Called by the writer, one at a time; event loop only.
"""

from typing import TYPE_CHECKING

from cache_service.block import Block
from cache_service.forgetting import ForgetQueue
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.recycling import RecyclePlan, plan_recycling
from cache_service.segment_reads import SegmentReads
from cache_service.ssd_health import SsdHealth
from cache_service.suspects import Suspects
from kvtier.blocks import MissReason, Tier
from storage.errors import SegmentsFullError, TierIOError
from storage.tier import SsdLocation

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
        listener: CacheListener,
    ) -> None:
        self._ssd = ssd
        self._index = index
        self._reads = reads
        self._forgotten = forgotten
        self._suspects = suspects
        self._health = health
        self._relog_share_max = relog_share_max
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
        for block in plan.drop:
            self._drop(block, MissReason.EVICTED)
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
            batch = [b for b in plan.keep[start : start + RELOG_BLOCKS] if b.location is not None]
            try:
                count += await self._relog_batch(batch)
            except SegmentsFullError:
                return count if self._drop_rest(plan.keep[start:]) else None
        return count

    async def _relog_batch(self, batch: list[Block]) -> int:
        try:
            return await self._move(batch)
        except TierIOError:
            pass
        # One of them cannot be read, or the disk takes nothing: find out which.
        count = 0
        for block in batch:
            try:
                count += await self._move([block])
            except TierIOError:
                if not self._suspects.failed(block.block_hash):
                    raise
                self._drop(block, MissReason.UNAVAILABLE)
            else:
                self._health.succeeded()
        return count

    async def _move(self, batch: list[Block]) -> int:
        """Relogs blocks that are still on the SSD; returns how many have a new place."""
        items = [(b.ssd_record(), b.location) for b in batch if b.location is not None]
        blocks = [b for b in batch if b.location is not None]
        if not items:
            return 0
        found = await self._ssd.relog(items)
        moved = 0
        for block, (_, before), after in zip(blocks, items, found, strict=True):
            moved += self._settle(block, before, after)
        return moved

    def _settle(self, block: Block, before: SsdLocation, after: SsdLocation | None) -> bool:
        if block.location != before:
            # It left the SSD while it was written again: the new record is an orphan.
            self._forgotten.add([block.block_hash])
            return False
        if after is None:
            self._listener.block_corrupt(Tier.SSD)
            self._drop(block, MissReason.CORRUPT)
            return False
        self._index.move_ssd(block, after)
        return True

    def _drop_rest(self, blocks: tuple[Block, ...]) -> bool:
        """No room to write more again: what may leave leaves. False when something must stay."""
        protected = self._index.protected()
        for block in blocks:
            if block not in protected:
                self._drop(block, MissReason.EVICTED)
        return all(block.location is None for block in blocks)

    def _drop(self, block: Block, reason: MissReason) -> None:
        if block.location is not None:
            dropped = self._index.drop_ssd(block, reason)
            self._forgotten.add(dropped)
            self.evicted_count += len(dropped)
