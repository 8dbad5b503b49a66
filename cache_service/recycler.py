"""Recycler: frees a segment of the SSD ahead of the writer.

    plan -> drop in the index -> relog what stays -> wait for reads -> forget -> recycle

Invariant: from the moment a block is dropped in the index nobody can find it, and only then is its
record forgotten and its segment written over; a crash at any point leaves every record that the
index on disk still names in place. Called by the writer, one at a time; event loop only.
"""

from typing import TYPE_CHECKING

from cache_service.block import Block
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.recycling import RecyclePlan, plan_recycling
from cache_service.segment_reads import SegmentReads
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash
from storage.errors import SegmentsFullError

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
        relog_share_max: float,
        listener: CacheListener,
    ) -> None:
        self._ssd = ssd
        self._index = index
        self._reads = reads
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
        forgotten: list[BlockHash] = []
        for block in plan.drop:
            self._drop(block, MissReason.EVICTED, forgotten)
        self._index.age_ssd(plan.age_to)
        self._listener.blocks_evicted(Tier.SSD, len(forgotten))
        relogged = await self._relog(plan, forgotten)
        if relogged is None:
            await self._forget(forgotten)
            return False
        await self._reads.idle(plan.segment_id)
        await self._forget(forgotten)
        await self._ssd.recycle(plan.segment_id)
        self._listener.segment_recycled(relogged, len(forgotten))
        return True

    async def _relog(self, plan: RecyclePlan, forgotten: list[BlockHash]) -> int | None:
        """Writes again what stays. None when there is no room for what must stay."""
        count = 0
        for start in range(0, len(plan.keep), RELOG_BLOCKS):
            batch = [b for b in plan.keep[start : start + RELOG_BLOCKS] if b.location is not None]
            items = [(b.ssd_record(), b.location) for b in batch if b.location is not None]
            try:
                found = await self._ssd.relog(items)
            except SegmentsFullError:
                return count if self._drop_rest(plan.keep[start:], forgotten) else None
            for block, (_, before), after in zip(batch, items, found, strict=True):
                if block.location != before:
                    # It left the SSD while it was written again: the new record is an orphan.
                    forgotten.append(block.block_hash)
                elif after is None:
                    self._listener.block_corrupt(Tier.SSD)
                    self._drop(block, MissReason.CORRUPT, forgotten)
                else:
                    self._index.move_ssd(block, after)
                    count += 1
        return count

    def _drop_rest(self, blocks: tuple[Block, ...], forgotten: list[BlockHash]) -> bool:
        """No room to write more again: what may leave leaves. False when something must stay."""
        protected = self._index.protected()
        for block in blocks:
            if block not in protected:
                self._drop(block, MissReason.EVICTED, forgotten)
        return all(block.location is None for block in blocks)

    def _drop(self, block: Block, reason: MissReason, forgotten: list[BlockHash]) -> None:
        if block.location is not None:
            dropped = self._index.drop_ssd(block, reason)
            forgotten.extend(dropped)
            self.evicted_count += len(dropped)

    async def _forget(self, hashes: list[BlockHash]) -> None:
        if hashes:
            await self._ssd.forget(hashes)
