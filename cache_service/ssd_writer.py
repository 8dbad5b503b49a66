"""SsdWriter: everything that changes the SSD, in one task, one step after another.

    forget what left  ->  free a segment ahead  ->  append a batch of waiting blocks  ->  again

Blocks are written behind: a commit is answered from host memory. A block whose time has come
(`write_timing.py`) waits in the queue, pinned so that it is not lost before it is written. A disk
that fails is an absent tier: waiting blocks are let go into plain host memory and nobody gets an
error.

Invariant: a hash is forgotten before it can be written again, because both happen in this task.
Event loop only; the bytes move on the tier's writer thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cache_service.admission import Admission
from cache_service.block_tree import NOWHERE
from cache_service.budget_note import Moment
from cache_service.forgetting import ForgetQueue
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.recycler import Recycler
from cache_service.room import HostRoom
from cache_service.ssd_admission import SsdAdmission
from cache_service.ssd_health import SsdHealth
from cache_service.views import CacheLimits
from cache_service.write_queue import WriteQueue
from cache_service.write_timing import WriteTiming
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash
from storage.errors import CorruptBlockError, SegmentsFullError, StorageError, TierIOError
from storage.host.arena import HostArena
from storage.tier import SsdLocation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from storage.ssd.tier import SsdTier

__all__ = ["SsdWriter"]

log = logging.getLogger(__name__)

RECYCLES_PER_BATCH = 4
"""Segments freed at most before the next batch is tried; each frees less than it holds."""

SMALL_RING_SEGMENTS = 8
"""An SSD of fewer segments keeps one free, not `free_segments_min`."""


class SsdWriter:
    """The task that works on the queue of waiting blocks and on the hashes to forget."""

    def __init__(
        self,
        ssd: "SsdTier",
        arena: HostArena,
        index: BlockIndex,
        room: HostRoom,
        recycler: Recycler,
        forgotten: ForgetQueue,
        health: SsdHealth,
        admission: SsdAdmission,
        queue: WriteQueue,
        timing: WriteTiming,
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
        small = len(ssd.segments()) < SMALL_RING_SEGMENTS
        self._free_segments_min = 1 if small else limits.free_segments_min
        self._admission = admission
        self._queue = queue
        self._timing = timing
        self._forgotten = forgotten
        self._full_count = 0
        """Batches in a row for which there was no segment."""
        self._task: asyncio.Task[None] | None = None

    @property
    def pending_count(self) -> int:
        """Blocks that wait, are being written, or come later if they are still here then."""
        return len(self._queue)

    def busy(self) -> bool:
        """True while blocks are on their way to the SSD, and will become free to evict."""
        return self._queue.busy

    def committed(self, rows: Sequence[int]) -> None:
        """Blocks came into the cache just now, in the order of their chain."""
        self._admission.judge(rows)
        self._count_declined(self._timing.committed(rows))
        self.wake()

    def used(self, row: int) -> None:
        """A block in host memory that the SSD lacks was used, and all before it."""
        self._count_declined(self._timing.used(row))
        self.wake()

    def insist(self, rows: Sequence[int]) -> None:
        """Blocks in host memory that pins name and the SSD lacks go there, as far as the queue has
        room: who insists asks again."""
        for row in rows:
            if self._queue.insist(row) is Admission.DEFER:
                break
        self.wake()

    def left_unwritten(self, count: int) -> None:
        """Blocks left host memory for good."""
        self._count_declined(count)

    def missed(self, names: "NDArray[np.uint64]") -> None:
        """Blocks were asked for that are nowhere; a name is the first word of a hash."""
        self._admission.missed(names)

    def forget(self, hashes: Sequence[BlockHash]) -> None:
        """Has the SSD's index forget blocks that left the cache."""
        self._forgotten.add(hashes)
        self.wake()

    async def forgotten(self) -> None:
        """Returns when all that left the SSD until now is durably forgotten there, with what the
        write or recycling under way brings of it. Raises TierIOError.

        Appending, re-logging and forgetting follow each other in one task: a flush that begins from
        now on begins after what is under way.
        """
        if not self._health.available:
            raise TierIOError("the SSD counts as absent for now, after errors")
        waiting = self._forgotten.next_flush()
        self.wake()
        await waiting

    def wake(self) -> None:
        """Starts the task when there is work and none runs."""
        if self._task is not None:
            return
        wanted = self._health.available and (self._forgotten.due or self._segment_due())
        if wanted or self._timing.due:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def drain(self) -> None:
        """Returns when everything that waits is written or given up."""
        self.wake()
        while self._task is not None:
            await asyncio.wait({self._task})
            if self._forgotten.due or self._timing.due:
                self.wake()

    def pins(self) -> dict[int, int]:
        return self._queue.pins()

    def check_integrity(self) -> None:
        self._queue.check_integrity()

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
            self._timing.refill()
            batch = self._queue.next_batch(
                self._limits.write_batch_blocks, self._limits.write_batch_bytes
            )
            if not batch:
                if self._forgotten.due or self._timing.due:
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
        if self._must_spare(batch):
            await self._full(batch, room_made)
            return
        items = [(tree.host_record(row), self._arena.view(tree.slab(row))) for row in batch]
        self._ssd.note(self._admission.note(Moment.now()))
        try:
            ends, owners = self._index.expiries.to_write(batch), self._index.owners.to_write(batch)
            marked = self._index.unit_ends.to_write(batch)
            locations = await self._ssd.append(items, ends, owners, marked)
        except SegmentsFullError:
            await self._full(batch, room_made)
            return
        except CorruptBlockError as error:
            self._drop_corrupt(batch, error)
            return
        except BaseException:
            self._decline(batch)
            raise
        self._full_count = 0
        self._health.succeeded()
        self._written(batch, locations, marked, self._clock() - began)

    def _must_spare(self, batch: Sequence[int]) -> bool:
        """While pins name blocks that recycling has to write again, the last free segment is for
        those: new ones that took it could leave every segment with something that cannot move."""
        if not self._index.keeping.names or self._ssd.free_segment_count > 1:
            return False
        size = self._index.tree.payload_bytes
        wanted = sum(self._ssd.record_bytes(size(row)) for row in batch)
        opened = (s for s in self._ssd.segments() if s.state == "open")
        rest = sum(s.capacity_bytes - s.used_bytes for s in opened)
        return not self._ssd.free_segment_count or wanted > rest

    async def _full(self, batch: Sequence[int], room_made: bool) -> None:
        """There is no room for the batch: it is the next again after a segment was freed."""
        self._queue.put_back(batch)
        self._full_count += 1
        hopeless = not room_made or self._full_count > RECYCLES_PER_BATCH
        if hopeless or not await self._recycler.run():
            self._full_count = 0
            self._decline_all()

    def _written(
        self,
        batch: list[int],
        locations: list[SsdLocation],
        marked: frozenset[BlockHash],
        seconds: float,
    ) -> None:
        tree, kept_bytes = self._index.tree, 0
        for row, location in zip(batch, locations, strict=True):
            parent = tree.parent(row)
            if tree.cached(row) and (parent == NOWHERE or tree.on_ssd(parent)):
                self._index.put_ssd(row, location)
                self._index.unit_ends.written(row, marked)
                kept_bytes += location.payload_bytes
            else:
                # It, or its parent on the SSD, left while it was written.
                self._forgotten.add([tree.block_hash(row)])
            self._queue.done(row)
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
        self._queue.put_back(batch)

    def _decline(self, batch: Sequence[int]) -> None:
        """Lets a batch go unwritten; its blocks stay in host memory like any other."""
        for row in batch:
            self._queue.done(row)
        self._listener.writes_declined(len(batch))
        self._room.changed()

    def _decline_all(self) -> None:
        """The same for everything that waits."""
        self._count_declined(self._queue.clear())
        self._timing.gave_up()
        self._room.changed()

    def _count_declined(self, count: int) -> None:
        if count:
            self._listener.writes_declined(count)
