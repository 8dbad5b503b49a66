"""Reads on their way from the event loop to the reader threads, and back, in few steps.

    loop: submit --> queue --> thread: takes a read and those that lie right behind it
    loop: <-- one wake-up for all that ended meanwhile <-- one system call for the whole run

A general executor costs more per call than verifying a 256 KiB block does, so this one does only
what a read needs. Invariants: as `Lane`, a read has ended when `run` returns or raises, also when
its task is cancelled; reads are taken in the order in which they came; at most `queue_max` are on
their way, and one more is refused at once. Used from one event loop.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from storage.errors import TierBusyError
from storage.ssd.lanes import settled
from storage.ssd.reader import RUN_READS_MAX, BlockRead, lies_behind

__all__ = ["ReadLane"]

log = logging.getLogger(__name__)

ReadRun = Callable[[Sequence[BlockRead]], Sequence[Exception | None]]
"""Reads records that lie one behind the other; the outcome of each."""

Landed = Callable[[int, Exception | None], None]
"""Told on the loop how the read at that position of a call ended; must not raise or wait."""

_RUN_BYTES_MAX = 4 << 20
"""A run grows while it is smaller: fewer, larger system calls (1 MiB took a fifth more CPU), and
short enough for the first block of a chain, a millisecond or two."""


class _Call:
    """The reads of one call. Changed on the loop only."""

    __slots__ = ("ended", "landed", "left")

    def __init__(self, landed: Landed, count: int, ended: "asyncio.Future[None]") -> None:
        self.landed = landed
        self.left = count
        self.ended = ended


class _Waiting:
    """One read, and what becomes of it."""

    __slots__ = ("call", "error", "position", "read")

    def __init__(self, read: BlockRead, call: _Call, position: int) -> None:
        self.read = read
        self.call = call
        self.position = position
        self.error: Exception | None = None


class ReadLane:
    """Reader threads and their queue. `close` it at the end."""

    def __init__(self, read_run: ReadRun, thread_count: int, queue_max: int) -> None:
        self._read_run = read_run
        self._queue_max = queue_max
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._done: deque[_Waiting] = deque()
        self._waking = False
        self._count = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"ssd-reader-{i}", daemon=True)
            for i in range(thread_count)
        ]
        for thread in self._threads:
            thread.start()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, reads: Sequence[BlockRead], landed: Landed) -> None:
        """Does the reads, in order as far as threads go, and returns when all have ended; each is
        told of as it ends. Raises TierBusyError, with none begun, when too many wait already."""
        if self._count + len(reads) > self._queue_max:
            raise TierBusyError(f"{self._count} reads wait for the SSD already")
        if not reads:
            return
        self._loop = asyncio.get_running_loop()
        call = _Call(landed, len(reads), self._loop.create_future())
        self._count += len(reads)
        for position, read in enumerate(reads):
            self._queue.put(_Waiting(read, call, position))
        try:
            await call.ended
        except asyncio.CancelledError:
            if call.left:
                call.ended = self._loop.create_future()
                await settled(call.ended)
            raise

    async def close(self) -> None:
        """Lets queued reads end, then the threads."""
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._join)
        self._deliver()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _deliver(self) -> None:
        self._waking = False  # before looking: what ends from here on wakes the loop again
        while self._done:
            waiting = self._done.popleft()
            call = waiting.call
            self._count -= 1
            call.left -= 1
            try:
                call.landed(waiting.position, waiting.error)
            except Exception:  # a fault of ours; the others must still hear of theirs
                log.exception("what was told of a read failed")
            if not call.left and not call.ended.done():
                call.ended.set_result(None)

    # --- reader threads -------------------------------------------------------------------------

    def _work(self) -> None:
        carried: _Waiting | None = None
        while (first := carried or self._queue.get()) is not None:
            run, carried = self._taken(first)
            try:
                outcomes = self._read_run([waiting.read for waiting in run])
            except Exception as error:  # a fault of ours must not leave anybody waiting
                outcomes = [error] * len(run)
            for waiting, outcome in zip(run, outcomes, strict=True):
                waiting.error = outcome
            self._done.extend(run)
            self._wake()
        self._queue.put(None)  # the end is for every thread

    def _taken(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """A run from `first` on, and the read behind it when that was taken and is not of it."""
        run = [first]
        size = first.read.location.stored_bytes
        while size < _RUN_BYTES_MAX and len(run) < RUN_READS_MAX:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)
                break
            if not lies_behind(run[-1].read, following.read):
                return run, following
            run.append(following)
            size += following.read.location.stored_bytes
        return run, None

    def _wake(self) -> None:
        if not self._waking and self._loop is not None:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
                self._loop.call_soon_threadsafe(self._deliver)
