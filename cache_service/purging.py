"""Purging: an operator has blocks taken out of every tier, and gets a receipt.

    target -> rows (purge_scan.py) -> slices: leaf after leaf out of the index
           -> the SSD forgets durably -> keys are destroyed, if wanted (shredding.py)
           -> receipt (receipt.py)

A leaf leaves before what it continues, so between two slices whoever finds a block finds every
block before it. A slice is `purge_slice_blocks` or `SLICE_SECONDS`, whichever is less; then others
run.
While it takes out, nothing that it covers can be committed (`closing.py`), so it ends; with a
shred, until the keys are destroyed. What a load asked the shared tier for before the purge was over
does not enter.

Invariants: a block that was taken out is found by nobody, and its slab is freed only when the last
who holds it lets go (the index sees to both); the receipt has each block once; the answer waits for
the SSD to forget durably, also what a write under way brings there meanwhile. One purge at a time.
Event loop; the digest on a thread.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cache_service.acquire_log import AcquireLog
from cache_service.block_columns import NOWHERE
from cache_service.errors import BlocksPinnedError, PurgeRunningError
from cache_service.parts import Parts
from cache_service.pin_views import Pin
from cache_service.pins import Pins
from cache_service.purge_scan import PurgeScan
from cache_service.purge_views import PurgeTarget, PurgeView, SharedForgetting, SsdForgetting
from cache_service.receipt import Receipt, hashes_sha256
from cache_service.shredding import Shredding
from cache_service.side import Side
from kvtier.blocks import MissReason
from kvtier.serving import ShuttingDownError
from storage.errors import StorageError

if TYPE_CHECKING:
    from cache_service.shared_side import SharedSide

__all__ = ["Purging"]

log = logging.getLogger(__name__)

SLICE_SECONDS = 0.001
LOOKS = 64
TURNS = 4
"""Of the loop, between two slices: a call that came meanwhile takes as many from its first byte to
its answer. Where nobody calls they are 0.1 ms."""
RUN_BLOCKS_MAX = 64
"""Taken out at one go: about 0.5 ms."""
RUN_BLOCKS_MIN = 4
"""Fewer are taken out one by one: NumPy calls cost more."""


class Purging(Side):
    """The side that takes out. `timer`: seconds, for how long a slice lasts."""

    def __init__(
        self,
        parts: Parts,
        acquires: AcquireLog,
        pins: Pins,
        timer: Callable[[], float] = time.perf_counter,
        shared: "SharedSide | None" = None,
    ) -> None:
        self._parts = parts
        self._index = parts.index
        self._tree = parts.index.tree
        self._acquires = acquires
        self._pins = pins
        self._timer = timer
        self._shared = shared
        self._task: asyncio.Task[PurgeView] | None = None
        self._stopped = False

    def start(
        self, target: PurgeTarget, *, dry_run: bool, force: bool = False, shred: bool = False
    ) -> "asyncio.Task[PurgeView]":
        """Begins a purge, which goes on whoever waits for it. `force`: pins that name some of it
        are ended. `shred`: the data keys of the target, which is `shreddable`, are destroyed.

        Raises PurgeRunningError, BlocksPinnedError, RequestUnknownError, SessionUnknownError,
        NotEncryptedError, ShuttingDownError; the task too raises ShuttingDownError, when the
        service ends first.
        """
        self._check_going_on()
        if self._task is not None:
            raise PurgeRunningError("another purge of this cache is running: wait for its end")
        shredding = Shredding(self._parts, target) if shred else None
        found = next(self._acquires.find(target.request_id, "", None), None)
        scan = PurgeScan(self._parts, target, found is not None)
        pins = self._pins.that(scan.names_of)
        if pins and not (force or dry_run):
            raise BlocksPinnedError(
                f"{len(pins)} pins name some of these blocks, {pins[0].owner!r} has one: unpin"
                " them, or purge with force",
                pin_count=len(pins),
                pin_id=pins[0].pin_id,
            )
        if not dry_run:
            self._parts.closing.begin(scan.covers)
        run = self._dry if dry_run else self._run
        purge = run(scan, target, pins, shredding)
        self._task = asyncio.get_running_loop().create_task(purge)
        self._task.add_done_callback(self._ended)
        return self._task

    def stop(self) -> None:
        """The service ends: a purge under way stops before its next slice."""
        self._stopped = True

    async def drain(self) -> None:
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})

    # -- one purge ---------------------------------------------------------------------------------

    def _ended(self, task: "asyncio.Task[PurgeView]") -> None:
        self._task = None
        # Looked at here too: the caller may have gone away, and nobody else would.
        if not task.cancelled() and task.exception() is not None:
            log.warning("a purge did not end", extra={"problem": str(task.exception())})

    async def _run(
        self,
        scan: PurgeScan,
        target: PurgeTarget,
        pins: list[Pin],
        shredding: Shredding | None,
    ) -> PurgeView:
        began, receipt = self._parts.clock(), Receipt(self._tree)
        shred = None
        if shredding is not None:
            receipt.look = shredding.look
        shared, left_count = SharedForgetting.NONE, 0
        try:
            unpinned = await self._unpin(pins)
            await self._take_out(scan, receipt)
            if shredding is not None:
                # What is stored while the old keys are there would be lost with them.
                forgetting = await self._forgotten(unpinned)
                shred = await shredding.destroy()
            self._parts.closing.end()
            if shredding is None:
                forgetting = await self._forgotten(unpinned)
            if self._shared is not None:
                shared, left_count = await self._shared.purging.delete(target)
        finally:
            self._parts.closing.over()
        copies = receipt.copies(ssd=self._parts.cold is not None)
        self._parts.tally.blocks_purged({each.tier: each.copy_count for each in copies})
        view = await self._view(target, receipt, began, forgetting, len(pins))
        return replace(view, shred=shred, shared_forgetting=shared, shared_left_count=left_count)

    async def _dry(
        self,
        scan: PurgeScan,
        target: PurgeTarget,
        pins: list[Pin],
        shredding: Shredding | None,
    ) -> PurgeView:
        began, receipt = self._parts.clock(), Receipt(self._tree)
        if shredding is not None:
            receipt.look = shredding.look
        await self._look(scan, receipt)
        shred = None if shredding is None else shredding.would()
        view = await self._view(target, receipt, began, SsdForgetting.NONE, len(pins))
        return replace(view, dry_run=True, shred=shred)

    async def _view(
        self,
        target: PurgeTarget,
        receipt: Receipt,
        began: float,
        forgetting: SsdForgetting,
        pin_count: int,
    ) -> PurgeView:
        digest = await asyncio.to_thread(hashes_sha256, receipt.hashes())
        return PurgeView(
            purge_id=secrets.token_hex(16),
            target=target,
            dry_run=False,
            seconds=self._parts.clock() - began,
            block_count=receipt.block_count,
            copies=receipt.copies(ssd=self._parts.cold is not None),
            hashes_sha256=digest,
            held_count=receipt.held_count,
            ssd_forgetting=forgetting,
            pin_count=pin_count,
        )

    async def _unpin(self, pins: list[Pin]) -> bool:
        """False: the pins are ended, and the SSD still has some of them."""
        try:
            await self._pins.end(pins, "purged")
        except StorageError as error:
            log.warning("purged pins are still on the SSD", extra={"problem": str(error)})
            return False
        return True

    async def _take_out(self, scan: PurgeScan, receipt: Receipt) -> None:
        for stretch in scan.stretches():
            await self._between_slices()
            slice_ = self._slice()
            for row in stretch:
                slice_.looked()
                while slice_.over or (scan.names(row) and not self._strip(row, receipt, slice_)):
                    self._parts.room.changed()
                    await self._between_slices()
                    slice_ = self._slice()
        self._parts.room.changed()

    def _strip(self, top: int, receipt: Receipt, slice_: "_Slice") -> bool:
        """Takes out what continues `top`, leaf after leaf, and `top` last. False: the slice is over
        first."""
        first_child, row = self._tree.columns.first_child, top
        while not slice_.over:
            child = first_child[row]
            if child != NOWHERE:
                row = child
                continue
            run = self._index.droppable_run(row, top, min(RUN_BLOCKS_MAX, slice_.left))
            if len(run) < RUN_BLOCKS_MIN:
                run = [row]
            row = self._tree.parent(run[-1])
            self._drop(run, receipt)
            slice_.count(len(run))
            if run[-1] == top:
                return True
        return False

    def _drop(self, run: list[int], receipt: Receipt) -> None:
        if self._shared is not None:
            self._shared.purging.note(run)
        if len(run) == 1:
            receipt.add(run[0])
            forgotten = self._index.drop(run[0], MissReason.PURGED)
        else:
            receipt.add_run(run)
            forgotten = self._index.drop_run(run, MissReason.PURGED)
        if self._parts.writer is not None and forgotten:
            self._parts.writer.forget(forgotten)

    async def _look(self, scan: PurgeScan, receipt: Receipt) -> None:
        """Adds up what is there; of what changes meanwhile, some."""
        seen = bytearray(self._tree.directory.row_high)
        for stretch in scan.stretches():
            await self._between_slices()
            slice_, below = self._slice(), list[int]()
            for top in stretch:
                below.append(top)
                while below:
                    row = below.pop()
                    if row >= len(seen) or seen[row] or not self._tree.cached(row):
                        continue
                    seen[row] = 1
                    receipt.add(row)
                    below.extend(self._tree.children(row))
                    slice_.count()
                    if slice_.over:
                        await self._between_slices()
                        slice_ = self._slice()

    async def _forgotten(self, unpinned: bool) -> SsdForgetting:
        writer = self._parts.writer
        if writer is None:
            return SsdForgetting.NONE
        try:
            async with asyncio.timeout(self._parts.limits.forget_wait_seconds):
                await writer.forgotten()
        except (StorageError, TimeoutError) as error:
            log.warning("the SSD has not forgotten a purge yet", extra={"problem": str(error)})
            return SsdForgetting.PENDING
        return SsdForgetting.DURABLE if unpinned else SsdForgetting.PENDING

    def _slice(self) -> "_Slice":
        return _Slice(self._timer, self._parts.limits.purge_slice_blocks)

    async def _between_slices(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._check_going_on()

    def _check_going_on(self) -> None:
        if self._stopped:
            raise ShuttingDownError(
                "the service is stopping and the purge is not whole; purge again once it is back"
            )


class _Slice:
    """What may be done before others run."""

    def __init__(self, timer: Callable[[], float], blocks_max: int) -> None:
        self._timer = timer
        self._end = timer() + SLICE_SECONDS
        self.left = blocks_max
        """Blocks; above 0 until it is over."""
        self._looks = 0
        self.over = False

    def looked(self) -> None:
        """A row was looked at, which is little: the time is asked for now and then."""
        self._looks += 1
        if not self._looks % LOOKS:
            self.over = self.over or self._timer() >= self._end

    def count(self, count: int = 1) -> None:
        self.left -= count
        self.over = self.left <= 0 or self._timer() >= self._end
