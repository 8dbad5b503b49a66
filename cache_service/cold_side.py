"""ColdSide: the parts that exist only with an SSD tier, built together.

Invariant: they share one health, one count of reads and one index. Built once by the cache.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from cache_service.budget_note import Moment
from cache_service.clear_blocks import ClearBlocks
from cache_service.forgetting import ForgetQueue
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.promotion import Promoter
from cache_service.quota_trim import trim_ssd
from cache_service.recycler import Recycler
from cache_service.room import HostRoom
from cache_service.scrubbing import Scrubbing
from cache_service.segment_reads import SegmentReads
from cache_service.side import Side
from cache_service.ssd_admission import SsdAdmission
from cache_service.ssd_blocks import LiveSsdBlocks
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.suspects import Suspects
from cache_service.views import CacheLimits, CachePolicies
from cache_service.write_ahead import WriteAhead, window_bytes
from cache_service.write_queue import WriteQueue
from cache_service.write_timing import AtCommit
from storage.host.arena import HostArena
from storage.ssd.scrub import Scrubber

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["ColdSide"]


class ColdSide(Side):
    """The SSD tier and its writer, recycler, promoter and scrubbing."""

    def __init__(
        self,
        ssd: "SsdTier",
        arena: HostArena,
        index: BlockIndex,
        room: HostRoom,
        health: SsdHealth,
        limits: CacheLimits,
        policies: CachePolicies,
        listener: CacheListener,
        clock: Callable[[], float],
    ) -> None:
        self.ssd = ssd
        self.clear = ClearBlocks(ssd, index)
        self.reads = SegmentReads()
        self._forgotten = forgotten = ForgetQueue(ssd)
        suspects = Suspects(health)
        self.admission = SsdAdmission(index, policies, clock)
        self.admission.resume(ssd.wear.note, ssd.wear.whole, Moment.now())
        self.recycler = Recycler(
            ssd,
            index,
            self.reads,
            forgotten,
            suspects,
            health,
            limits.relog_share_max,
            self.admission,
            listener,
        )
        leaving = policies.ssd_write_when == "leaving"
        share_bytes = int(limits.pending_write_share_max * arena.capacity_bytes)
        window = min(share_bytes, window_bytes(limits, arena.capacity_bytes))
        queue = WriteQueue(ssd, index, health, self.admission, window if leaving else share_bytes)
        self._ahead: WriteAhead | None = None
        if leaving:
            departures = index.follow_departures()
            self._ahead = WriteAhead(index, departures, queue, arena, health, window)
        self.writer = SsdWriter(
            ssd,
            arena,
            index,
            room,
            self.recycler,
            forgotten,
            health,
            self.admission,
            queue,
            self._ahead or AtCommit(queue),
            limits,
            listener,
            clock,
        )
        if self._ahead is not None:
            room.write_before_leaving(self._ahead, self.writer)
        self.promoter = Promoter(
            ssd, arena, index, room, self.writer, self.reads, health, suspects, listener, clock
        )
        blocks = LiveSsdBlocks(ssd, index, self.writer.forget)
        self.scrubbing = Scrubbing(
            Scrubber(ssd, blocks, clock, asyncio.sleep),
            blocks,
            health,
            suspects,
            listener,
            clock,
            limits.scrub_bytes_per_second,
        )
        self._health = health
        self._index = index
        self._listener = listener
        self._write_out_seconds = limits.write_out_seconds

    def recover(self) -> None:
        """Enters every block that opening the tier found, as far as quotas allow it."""
        self._index.recover(self.ssd.recovered())
        self._forgotten.add(trim_ssd(self._index))

    async def drain(self) -> None:
        """Writes what waits or would be lost, lets reads finish, closes the tier."""
        await self.scrubbing.stop()
        if self._ahead is not None:
            found = await self._ahead.write_out(self.writer.drain, self._write_out_seconds)
            self._listener.written_out(found.written_count, found.left_count, found.left_bytes)
        await self.writer.drain()
        self._health.retire()
        await self.promoter.drain()
        await self.writer.drain()
        self.ssd.note(self.admission.note(Moment.now()))
        await self.ssd.close()

    def tick(self) -> None:
        self.writer.wake()
        self.scrubbing.start()

    def pins(self) -> dict[int, int]:
        counts = Counter(self.writer.pins())
        counts.update(self.promoter.pins())
        return counts

    def check_integrity(self) -> None:
        self.writer.check_integrity()
