"""Promoter: brings blocks from the SSD into host memory.

Acquires that want the same block share one read. A read runs to its end once it began, whoever
still waits for it: its slab cannot be given away while a reader thread writes into it.

Invariant: a block is pinned while it is read; its slab enters the index only whole and verified.
Event loop only; the bytes move on the tier's reader threads.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.room import HostRoom
from cache_service.segment_reads import SegmentReads
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.suspects import Suspects
from kvtier.blocks import MissReason, Tier
from storage.errors import CorruptBlockError, TierBusyError, TierIOError
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
        self._loads: dict[int, asyncio.Task[MissReason]] = {}

    def load(self, row: int) -> "asyncio.Task[MissReason]":
        """The load of a block, started unless it is under way. NONE: the block is in memory now.

        REQUIRES: the block is cached and not in host memory.
        """
        task = self._loads.get(row)
        if task is None:
            self._index.pin(row)
            task = asyncio.get_running_loop().create_task(self._load(row))
            self._loads[row] = task
        return task

    @property
    def loading_count(self) -> int:
        """Loads in flight; each holds at most one slab that the index does not know yet."""
        return len(self._loads)

    async def drain(self) -> None:
        """Returns when no read is in flight."""
        while self._loads:
            await asyncio.wait(set(self._loads.values()))

    def pins(self) -> dict[int, int]:
        return dict.fromkeys(self._loads, 1)

    async def _load(self, row: int) -> MissReason:
        tree = self._index.tree
        try:
            slab = await self._room.take_waiting(
                tree.payload_bytes(row), self._writer.busy, self._room.patience()
            )
            if slab is None:
                return MissReason.ARENA_FULL
            reason = await self._read(row, slab)
            if reason is MissReason.NONE and tree.cached(row) and not tree.in_host(row):
                self._index.put_host(row, slab, tree.location(row).checksum)
            else:
                self._arena.free(slab)
            return MissReason.NONE if tree.in_host(row) else reason
        finally:
            del self._loads[row]
            self._index.unpin(row)
            self._room.changed()

    async def _read(self, row: int, slab: Slab) -> MissReason:
        tree = self._index.tree
        block_hash = tree.block_hash(row)
        if not tree.on_ssd(row):
            return self._index.absences.reason(block_hash)
        record, location = tree.ssd_record(row), tree.location(row)
        began = self._clock()
        try:
            with self._reads.reading(location.segment_id):
                await self._ssd.read(record, location, self._arena.view(slab))
        except CorruptBlockError:
            self._listener.block_corrupt(Tier.SSD)
            self._drop(row, MissReason.CORRUPT)
            return MissReason.CORRUPT
        except TierBusyError:
            return MissReason.UNAVAILABLE  # the disk is well, there is only too much to do
        except TierIOError as error:
            self._health.failed()
            self._listener.ssd_failed("read", str(error))
            if self._suspects.failed(block_hash):
                self._drop(row, MissReason.UNAVAILABLE)
            return MissReason.UNAVAILABLE
        self._health.succeeded()
        self._suspects.cleared(block_hash)
        if not tree.on_ssd(row) or tree.location(row).checksum != location.checksum:
            # It left the SSD meanwhile, as the descendant of a corrupt block.
            return self._index.absences.reason(block_hash)
        self._listener.blocks_promoted(1, record.payload_bytes, self._clock() - began)
        return MissReason.NONE

    def _drop(self, row: int, reason: MissReason) -> None:
        """What cannot be read is no longer cached: else nobody could store it again."""
        if self._index.tree.on_ssd(row):
            self._writer.forget(self._index.drop_ssd(row, reason))
