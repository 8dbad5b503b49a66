"""SsdWriter: everything that changes the SSD, in one task, one step after another.

    forget what left  ->  free a segment ahead  ->  append a batch of waiting blocks  ->  again

Blocks are written behind: a commit is answered from host memory, its blocks wait here, parents
before children, pinned so that they are not lost before they are written. A disk that fails is an
absent tier: waiting blocks are let go into plain host memory and nobody gets an error.

Invariants: a waiting block is pinned exactly once by the queue; its parent is on the SSD or waits
before it; a hash is forgotten before it can be written again, because both happen in this task.
Event loop only; the bytes move on the tier's writer thread.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from cache_service.admission import Admission, WriteOffer, admit
from cache_service.block import Block
from cache_service.forgetting import ForgetQueue
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.recycler import Recycler
from cache_service.room import HostRoom
from cache_service.ssd_health import SsdHealth
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash
from storage.errors import CorruptBlockError, SegmentsFullError, StorageError
from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES, SsdLocation

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["SsdWriter"]

log = logging.getLogger(__name__)

RECYCLES_PER_BATCH = 4
"""Segments freed at most before the next batch is tried; each frees less than it holds."""

DEFERRED_MAX = 65_536

SMALL_RING_SEGMENTS = 8
"""An SSD of fewer segments keeps one free, not `free_segments_min`."""


class SsdWriter:
    """The queue of waiting blocks, the hashes to forget, and the task that works on both."""

    def __init__(
        self,
        ssd: "SsdTier",
        arena: HostArena,
        index: BlockIndex,
        room: HostRoom,
        recycler: Recycler,
        forgotten: ForgetQueue,
        health: SsdHealth,
        limits: CacheLimits,
        listener: CacheListener,
        clock: Callable[[], float],
    ) -> None:
        self._ssd = ssd
        self._arena = arena
        self._index = index
        self._room = room
        self._recycler = recycler
        self._health = health
        self._limits = limits
        self._listener = listener
        self._clock = clock
        segments = ssd.segments()
        # The first page of a segment is its header.
        self._segment_bytes = min(segment.capacity_bytes for segment in segments) - PAGE_BYTES
        small = len(segments) < SMALL_RING_SEGMENTS
        self._free_segments_min = 1 if small else limits.free_segments_min
        self._pending_bytes_max = int(limits.pending_write_share_max * arena.capacity_bytes)
        self._waiting: deque[Block] = deque()
        self._deferred: OrderedDict[Block, None] = OrderedDict()
        """In order, each once. Not pinned: they may be evicted before their turn comes."""
        self._queued: set[Block] = set()
        self._pending_bytes = 0
        self._forgotten = forgotten
        self._full_count = 0
        """Batches in a row for which there was no segment."""
        self._task: asyncio.Task[None] | None = None

    @property
    def pending_count(self) -> int:
        """Blocks that wait, are being written, or come later if they are still here then."""
        return len(self._queued) + len(self._deferred)

    def busy(self) -> bool:
        """True while blocks are on their way to the SSD, and will become free to evict."""
        return bool(self._queued)

    def offer(self, blocks: Iterable[Block]) -> None:
        """Queues what admission lets in, with everything before it that is not on the SSD yet."""
        declined = 0
        for block in blocks:
            answer = self._enqueue(block)
            if answer is Admission.WRITE or block in self._deferred:
                continue
            if answer is Admission.DEFER and len(self._deferred) < DEFERRED_MAX:
                self._deferred[block] = None
            else:
                declined += 1
        if declined:
            self._listener.writes_declined(declined)
        self.wake()

    def forget(self, hashes: Sequence[BlockHash]) -> None:
        """Has the SSD's index forget blocks that left the cache."""
        self._forgotten.add(hashes)
        self.wake()

    def wake(self) -> None:
        """Starts the task when there is work and none runs."""
        if self._task is not None:
            return
        wanted = self._forgotten or self._segment_due() if self._health.available else False
        if wanted or self._waiting or self._deferred:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def drain(self) -> None:
        """Returns when everything that waits is written or given up."""
        self.wake()
        while self._task is not None:
            await asyncio.wait({self._task})
            if self._forgotten or self._waiting or self._deferred:
                self.wake()

    def pins(self) -> dict[Block, int]:
        return dict.fromkeys(self._queued, 1)

    def check_integrity(self) -> None:
        assert self._pending_bytes == sum(self._record_bytes(b) for b in self._queued)
        assert self._pending_bytes <= self._pending_bytes_max or len(self._queued) == 1
        assert self._queued >= set(self._waiting)
        assert len(self._waiting) == len(set(self._waiting))
        for block in self._queued:
            assert block.pins > 0
            assert block.slab is not None

    # -- the queue ---------------------------------------------------------------------------------

    def _record_bytes(self, block: Block) -> int:
        return self._ssd.record_bytes(block.payload_bytes)

    def _enqueue(self, block: Block) -> Admission:
        """Queues a block behind what lies before it; stops at the first that may not go now."""
        way = []
        each: Block | None = block
        while each is not None and each.location is None and each not in self._queued:
            way.append(each)
            each = each.parent
        for step in reversed(way):
            answer = self._ask(step)
            if answer is not Admission.WRITE:
                return answer
            self._queue(step)
        return Admission.WRITE

    def _ask(self, block: Block) -> Admission:
        if block.slab is None or not block.cached:
            return Admission.DECLINE
        return admit(
            WriteOffer(
                record_bytes=self._record_bytes(block),
                segment_bytes=self._segment_bytes,
                pending_bytes=self._pending_bytes,
                pending_bytes_max=self._pending_bytes_max,
                ssd_available=self._health.available,
            )
        )

    def _take_deferred(self) -> None:
        """Asks again about blocks that had to come later."""
        while self._deferred:
            block = next(iter(self._deferred))
            if self._enqueue(block) is Admission.DEFER:
                return
            del self._deferred[block]

    def _queue(self, block: Block) -> None:
        self._index.pin(block)
        self._queued.add(block)
        self._waiting.append(block)
        self._pending_bytes += self._record_bytes(block)

    def _unqueue(self, block: Block) -> None:
        self._queued.discard(block)
        self._pending_bytes -= self._record_bytes(block)
        self._index.unpin(block)

    def _decline(self, blocks: Sequence[Block]) -> None:
        """Lets blocks go unwritten; they stay in host memory like any other."""
        for block in blocks:
            self._unqueue(block)
        if blocks:
            self._listener.writes_declined(len(blocks))
        self._room.changed()

    def _decline_all(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        self._deferred.clear()
        self._decline(waiting)

    def _next_batch(self) -> list[Block]:
        """Waiting blocks that still can be written, up to the limits of a batch.

        A batch fits into one segment, so the open one's rest and one free segment hold it.
        """
        batch: list[Block] = []
        size = 0
        bytes_max = min(self._limits.write_batch_bytes, self._segment_bytes)
        while self._waiting and len(batch) < self._limits.write_batch_blocks:
            block = self._waiting[0]
            record = self._record_bytes(block)
            if batch and size + record > bytes_max:
                break
            self._waiting.popleft()
            if not block.cached or block.location is not None:
                self._unqueue(block)
                continue
            batch.append(block)
            size += record
        return batch

    # -- the task ----------------------------------------------------------------------------------

    def _segment_due(self) -> bool:
        return self._ssd.free_segment_count < self._free_segments_min

    async def _run(self) -> None:
        try:
            await self._work()
        except StorageError as error:
            self._health.failed()
            self._listener.ssd_failed("write", str(error))
            self._decline_all()
        except Exception:
            # A fault of ours must not leave blocks pinned for ever.
            log.exception("the SSD writer stopped; waiting blocks stay in host memory only")
            self._decline_all()
        finally:
            self._task = None

    async def _work(self) -> None:
        while True:
            if not self._health.available:
                self._decline_all()
                return
            await self._forgotten.flush()
            room_made = await self._free_segments()
            self._take_deferred()
            batch = self._next_batch()
            if not batch:
                if self._forgotten or self._waiting or self._deferred:
                    continue
                return
            await self._append(batch, room_made)

    async def _free_segments(self) -> bool:
        """Recycles until enough segments are free. False when none can be freed now."""
        for _ in range(RECYCLES_PER_BATCH):
            if not self._segment_due() or not self._health.available:
                return True
            if not await self._recycler.run():
                return False
        return True

    async def _append(self, batch: list[Block], room_made: bool) -> None:
        began = self._clock()
        items = []
        for block in batch:
            assert block.slab is not None
            items.append((block.host_record(), self._arena.view(block.slab)))
        try:
            locations = await self._ssd.append(items)
        except SegmentsFullError:
            self._waiting.extendleft(reversed(batch))
            self._full_count += 1
            hopeless = not room_made or self._full_count > RECYCLES_PER_BATCH
            if hopeless or not await self._recycler.run():
                self._full_count = 0
                self._decline_all()
            return
        except CorruptBlockError as error:
            self._drop_corrupt(batch, error)
            return
        except BaseException:
            self._decline(batch)
            raise
        self._full_count = 0
        self._health.succeeded()
        self._written(batch, locations, self._clock() - began)

    def _written(self, batch: list[Block], locations: list[SsdLocation], seconds: float) -> None:
        kept_bytes = 0
        for block, location in zip(batch, locations, strict=True):
            parent = block.parent
            if block.cached and (parent is None or parent.location is not None):
                self._index.put_ssd(block, location)
                kept_bytes += block.payload_bytes
            else:
                # It, or its parent on the SSD, left while it was written.
                self._forgotten.add([block.block_hash])
            self._unqueue(block)
        self._listener.blocks_written(len(batch), kept_bytes, seconds)
        self._room.changed()

    def _drop_corrupt(self, batch: list[Block], error: CorruptBlockError) -> None:
        """A slab does not hold what its checksum says: that block leaves, the others try again."""
        self._listener.block_corrupt(Tier.HOST)
        position = error.metadata.get("index", "")
        if not (position.isdigit() and int(position) < len(batch)):
            self._decline(batch)
            return
        corrupt = batch[int(position)]
        if corrupt.cached:
            self._forgotten.add(self._index.drop(corrupt, MissReason.CORRUPT))
        self._waiting.extendleft(reversed(batch))
