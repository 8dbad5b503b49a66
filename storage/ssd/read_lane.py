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
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.errors import TierBusyError
from storage.ssd.lanes import settled
from storage.ssd.reader import RUN_READS_MAX, BlockRead, lies_behind

__all__ = ["ReadLane"]

ReadRun = Callable[[Sequence[BlockRead]], Sequence[Exception | None]]
"""Reads records that lie one behind the other; the outcome of each."""

_RUN_BYTES_MAX = 1 << 20
"""A run grows while it is smaller: enough for the disk, and short enough to share the work."""


@dataclass(slots=True)
class _Waiting:
    """One read, and what becomes of it."""

    read: BlockRead
    future: "asyncio.Future[None]"
    error: Exception | None = None


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

    async def run(self, read: BlockRead) -> None:
        """Does one read. Raises what it raises, and TierBusyError when too many wait already."""
        if self._count >= self._queue_max:
            raise TierBusyError(f"{self._count} reads wait for the SSD already")
        self._loop = asyncio.get_running_loop()
        future = self._loop.create_future()
        self._count += 1
        self._queue.put(_Waiting(read, future))
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await settled(future)
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
            self._count -= 1
            if waiting.error is None:
                waiting.future.set_result(None)
            else:
                waiting.future.set_exception(waiting.error)

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
