"""Promoter: brings blocks from the SSD into host memory.

Acquires that want the same block share one read. A read runs to its end once it began, whoever
still waits for it: its slab cannot be given away while a reader thread writes into it.

Invariant: a block is pinned while it is read; its slab enters the index only whole and verified.
Event loop only; the bytes move on the tier's reader threads.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from cache_service.block import Block
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.room import HostRoom
from cache_service.segment_reads import SegmentReads
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.suspects import Suspects
from kvtier.blocks import MissReason, Tier
from storage.errors import CorruptBlockError, TierIOError
from storage.host.arena import HostArena
from storage.tier import Slab

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["Promoter"]


class Promoter:
    """Loads in flight, one task per block."""

    def __init__(
        self,
        ssd: "SsdTier",
        arena: HostArena,
        index: BlockIndex,
        room: HostRoom,
        writer: SsdWriter,
        reads: SegmentReads,
        health: SsdHealth,
        suspects: Suspects,
        listener: CacheListener,
        clock: Callable[[], float],
    ) -> None:
        self._ssd = ssd
        self._arena = arena
        self._index = index
        self._room = room
        self._writer = writer
        self._reads = reads
        self._health = health
        self._suspects = suspects
        self._listener = listener
        self._clock = clock
        self._loads: dict[Block, asyncio.Task[MissReason]] = {}

    def load(self, block: Block) -> "asyncio.Task[MissReason]":
        """The load of a block, started unless it is under way. NONE: the block is in memory now.

        REQUIRES: the block is cached and not in host memory.
        """
        task = self._loads.get(block)
        if task is None:
            self._index.pin(block)
            task = asyncio.get_running_loop().create_task(self._load(block))
            self._loads[block] = task
        return task

    @property
    def loading_count(self) -> int:
        """Loads in flight; each holds at most one slab that the index does not know yet."""
        return len(self._loads)

    async def drain(self) -> None:
        """Returns when no read is in flight."""
        while self._loads:
            await asyncio.wait(set(self._loads.values()))

    def pins(self) -> dict[Block, int]:
        return dict.fromkeys(self._loads, 1)

    async def _load(self, block: Block) -> MissReason:
        try:
            slab = await self._room.take_waiting(
                block.payload_bytes, self._writer.busy, self._room.patience()
            )
            if slab is None:
                return MissReason.ARENA_FULL
            reason = await self._read(block, slab)
            if reason is MissReason.NONE and block.cached and block.slab is None:
                assert block.location is not None
                self._index.put_host(block, slab, block.location.checksum)
            else:
                self._arena.free(slab)
            return reason if block.slab is None else MissReason.NONE
        finally:
            del self._loads[block]
            self._index.unpin(block)
            self._room.changed()

    async def _read(self, block: Block, slab: Slab) -> MissReason:
        location = block.location
        if location is None:
            return self._index.absence(block.block_hash)
        began = self._clock()
        try:
            with self._reads.reading(location.segment_id):
                await self._ssd.read(block.ssd_record(), location, self._arena.view(slab))
        except CorruptBlockError:
            self._listener.block_corrupt(Tier.SSD)
            self._drop(block, MissReason.CORRUPT)
            return MissReason.CORRUPT
        except TierIOError as error:
            self._health.failed()
            self._listener.ssd_failed("read", str(error))
            if self._suspects.failed(block.block_hash):
                self._drop(block, MissReason.UNAVAILABLE)
            return MissReason.UNAVAILABLE
        self._health.succeeded()
        self._suspects.cleared(block.block_hash)
        if block.location is None or block.location.checksum != location.checksum:
            # It left the SSD meanwhile, as the descendant of a corrupt block.
            return self._index.absence(block.block_hash)
        self._listener.blocks_promoted(1, block.payload_bytes, self._clock() - began)
        return MissReason.NONE

    def _drop(self, block: Block, reason: MissReason) -> None:
        """What cannot be read is no longer cached: else nobody could store it again."""
        if block.cached and block.location is not None:
            self._writer.forget(self._index.drop_ssd(block, reason))
