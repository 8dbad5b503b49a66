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
from cache_service.block_tree import ABSENT, NOWHERE
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
        self._waiting: deque[int] = deque()
        self._deferred: OrderedDict[BlockHash, None] = OrderedDict()
        """In order, each once. Not pinned: they may be evicted before their turn comes."""
        self._queued: set[int] = set()
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

    def offer(self, rows: Iterable[int]) -> None:
        """Queues what admission lets in, with everything before it that is not on the SSD yet."""
        declined = 0
        for row in rows:
            answer = self._enqueue(row)
            block_hash = self._index.tree.block_hash(row)
            if answer is Admission.WRITE or block_hash in self._deferred:
                continue
            if answer is Admission.DEFER and len(self._deferred) < DEFERRED_MAX:
                self._deferred[block_hash] = None
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

    def pins(self) -> dict[int, int]:
        return dict.fromkeys(self._queued, 1)

    def check_integrity(self) -> None:
        assert self._pending_bytes == sum(self._record_bytes(b) for b in self._queued)
        assert self._pending_bytes <= self._pending_bytes_max or len(self._queued) == 1
        assert self._queued >= set(self._waiting)
        assert len(self._waiting) == len(set(self._waiting))
        for row in self._queued:
            assert self._index.tree.pins(row) > 0
            assert self._index.tree.in_host(row)

    # -- the queue ---------------------------------------------------------------------------------

    def _record_bytes(self, row: int) -> int:
        return self._ssd.record_bytes(self._index.tree.payload_bytes(row))

    def _enqueue(self, row: int) -> Admission:
        """Queues a block behind what lies before it; stops at the first that may not go now."""
        tree, way = self._index.tree, []
        while row != NOWHERE and not tree.on_ssd(row) and row not in self._queued:
            way.append(row)
            row = tree.parent(row)
        for step in reversed(way):
            answer = self._ask(step)
            if answer is not Admission.WRITE:
                return answer
            self._queue(step)
        return Admission.WRITE

    def _ask(self, row: int) -> Admission:
        if not self._index.tree.in_host(row) or not self._index.tree.cached(row):
            return Admission.DECLINE
        return admit(
            WriteOffer(
                record_bytes=self._record_bytes(row),
                segment_bytes=self._segment_bytes,
                pending_bytes=self._pending_bytes,
                pending_bytes_max=self._pending_bytes_max,
                ssd_available=self._health.available,
            )
        )

    def _take_deferred(self) -> None:
        """Asks again about blocks that had to come later."""
        while self._deferred:
            block_hash = next(iter(self._deferred))
            row = self._index.tree.find(block_hash)
            if row != ABSENT and self._enqueue(row) is Admission.DEFER:
                return
            del self._deferred[block_hash]

    def _queue(self, row: int) -> None:
        self._index.pin(row)
        self._queued.add(row)
        self._waiting.append(row)
        self._pending_bytes += self._record_bytes(row)

    def _unqueue(self, row: int) -> None:
        self._queued.discard(row)
        self._pending_bytes -= self._record_bytes(row)
        self._index.unpin(row)

    def _decline(self, rows: Sequence[int]) -> None:
        """Lets blocks go unwritten; they stay in host memory like any other."""
        for row in rows:
            self._unqueue(row)
        if rows:
            self._listener.writes_declined(len(rows))
        self._room.changed()

    def _decline_all(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        self._deferred.clear()
        self._decline(waiting)

    def _next_batch(self) -> list[int]:
        """Waiting blocks that still can be written, up to the limits of a batch.

        A batch fits into one segment, so the open one's rest and one free segment hold it.
        """
        batch: list[int] = []
        tree, size = self._index.tree, 0
        bytes_max = min(self._limits.write_batch_bytes, self._segment_bytes)
        while self._waiting and len(batch) < self._limits.write_batch_blocks:
            row = self._waiting[0]
            record = self._record_bytes(row)
            if batch and size + record > bytes_max:
                break
            self._waiting.popleft()
            if not tree.cached(row) or tree.on_ssd(row):
                self._unqueue(row)
                continue
            batch.append(row)
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

    async def _append(self, batch: list[int], room_made: bool) -> None:
        tree, began = self._index.tree, self._clock()
        items = [(tree.host_record(row), self._arena.view(tree.slab(row))) for row in batch]
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

    def _written(self, batch: list[int], locations: list[SsdLocation], seconds: float) -> None:
        tree, kept_bytes = self._index.tree, 0
        for row, location in zip(batch, locations, strict=True):
            parent = tree.parent(row)
            if tree.cached(row) and (parent == NOWHERE or tree.on_ssd(parent)):
                self._index.put_ssd(row, location)
                kept_bytes += location.payload_bytes
            else:
                # It, or its parent on the SSD, left while it was written.
                self._forgotten.add([tree.block_hash(row)])
            self._unqueue(row)
        self._listener.blocks_written(len(batch), kept_bytes, seconds)
        self._room.changed()

    def _drop_corrupt(self, batch: list[int], error: CorruptBlockError) -> None:
        """A slab does not hold what its checksum says: that block leaves, the others try again."""
        self._listener.block_corrupt(Tier.HOST)
        position = error.metadata.get("index", "")
        if not (position.isdigit() and int(position) < len(batch)):
            self._decline(batch)
            return
        corrupt = batch[int(position)]
        if self._index.tree.cached(corrupt):
            self._forgotten.add(self._index.drop(corrupt, MissReason.CORRUPT))
        self._waiting.extendleft(reversed(batch))
