"""Reads on their way from the event loop to the reader threads, and back, in few steps.

    loop: cuts a call into runs of records that lie one behind the other --> order --> threads
    loop: <-- one wake-up for all that ended meanwhile <-- one system call for a whole run

A general executor costs more per call than verifying a 256 KiB block does, so this one does only
what a read needs. Invariants: as `Lane`, a read has ended when `run` returns or raises, also when
its task is cancelled; reads are taken in the order of `ReadOrder`: a flow's as it asked for them,
flows in turn; at most `queue_max` are on their way, and one more is refused at once. Used from one
event loop.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from storage.errors import TierBusyError
from storage.ssd.format import record_bytes
from storage.ssd.lanes import settled
from storage.ssd.read_order import ReadFlow, ReadOrder
from storage.ssd.reader import (
    FIRST_RUN_BYTES,
    RUN_BYTES_MAX,
    RUN_BYTES_SHARED,
    BlockRead,
    runs,
)
from storage.tier import SegmentId

__all__ = ["ReadLane"]

log = logging.getLogger(__name__)

ReadRun = Callable[[Sequence[BlockRead]], Sequence[Exception | None]]
"""Reads records that lie one behind the other; the outcome of each."""

SHORT_RUNS_BYTES = 256 << 20
"""How much is read in short runs after somebody who wanted little had to wait: a tenth of a second
of a fast disk."""

Place = tuple[SegmentId, int]
"""Segment and offset of a record."""

Landed = Callable[[int, Exception | None], None]
"""Told on the loop how the read at that position of a call ended; must not raise or wait."""


class _Call:
    """The reads of one call. Changed on the loop only."""

    __slots__ = ("ended", "landed", "left", "reads")

    def __init__(
        self, reads: Sequence[BlockRead], landed: Landed, ended: "asyncio.Future[None]"
    ) -> None:
        self.reads = reads
        self.landed = landed
        self.left = len(reads)
        self.ended = ended


class _Run(NamedTuple):
    """Reads of a call that one system call can do."""

    call: _Call
    start: int
    end: int
    size_bytes: int


class ReadLane:
    """Reader threads and their queue. `close` it at the end."""

    def __init__(self, read_run: ReadRun, thread_count: int, queue_max: int) -> None:
        self._read_run = read_run
        self._queue_max = queue_max
        self._order: ReadOrder[_Run] = ReadOrder()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each run that waits in the order; False at the end."""
        self._done: deque[tuple[_Run, Sequence[Exception | None]]] = deque()
        self._short_bytes = 0
        """Bytes that are still to be read in short runs."""
        self.read_bytes = 0
        """Stored bytes and record headers of good reads."""
        self._waking = False
        self._count = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"ssd-reader-{i}", daemon=True)
            for i in range(thread_count)
        ]
        for thread in self._threads:
            thread.start()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self, reads: Sequence[BlockRead], landed: Landed, flow: ReadFlow | None = None
    ) -> None:
        """Does the reads, in order as far as threads go, and returns when all have ended; each is
        told of as it ends. Without a `flow` they are one of their own. Raises TierBusyError, with
        none begun, when too many wait already."""
        if self._count + len(reads) > self._queue_max:
            raise TierBusyError(f"{self._count} reads wait for the SSD already")
        if not reads:
            return
        self._loop = asyncio.get_running_loop()
        call = _Call(reads, landed, self._loop.create_future())
        self._count += len(reads)
        flow = ReadFlow() if flow is None else flow
        run_bytes_max = self._run_bytes_max(reads, flow)
        first_bytes_max = FIRST_RUN_BYTES if flow.new else run_bytes_max
        for start, end, size in runs(reads, run_bytes_max, first_bytes_max):
            self._short_bytes = max(0, self._short_bytes - size)
            self._order.put(_Run(call, start, end, size), flow, size)
            self._tokens.put(True)
        try:
            await call.ended
        except asyncio.CancelledError:
            if call.left:
                call.ended = self._loop.create_future()
                await settled(call.ended)
            raise

    def sooner(self, places: Container[Place], flow: ReadFlow) -> None:
        """Reads of those records, where others' wait, are done when `flow` would have its turn."""

        def wanted(run: _Run) -> bool:
            reads = run.call.reads[run.start : run.end]
            return any((at.segment_id, at.offset) in places for _, at, _ in reads)

        self._order.sooner(wanted, flow)

    async def close(self) -> None:
        """Lets queued reads end, then the threads."""
        self._tokens.put(False)
        await asyncio.get_running_loop().run_in_executor(None, self._join)
        self._deliver()

    def _run_bytes_max(self, reads: Sequence[BlockRead], flow: ReadFlow) -> int:
        """Short while somebody who wants little comes now and then beside those who want much: a
        run cannot be taken back, so he waits for those begun. Long else, for they take less."""
        if flow.new and self._order.waits_for_others(flow):
            wanted_bytes = sum(record_bytes(at.stored_bytes) for _, at, _ in reads)
            if wanted_bytes < FIRST_RUN_BYTES:
                self._short_bytes = SHORT_RUNS_BYTES
        return RUN_BYTES_SHARED if self._short_bytes else RUN_BYTES_MAX

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _deliver(self) -> None:
        self._waking = False  # before looking: what ends from here on wakes the loop again
        while self._done:
            run, outcomes = self._done.popleft()
            call = run.call
            count = run.end - run.start
            self._count -= count
            call.left -= count
            self.read_bytes += run.size_bytes if not any(outcomes) else _good_bytes(run, outcomes)
            for position, error in enumerate(outcomes, run.start):
                try:
                    call.landed(position, error)
                except Exception:  # a fault of ours; the others must still hear of theirs
                    log.exception("what was told of a read failed")
            if not call.left and not call.ended.done():
                call.ended.set_result(None)

    # --- reader threads -------------------------------------------------------------------------

    def _work(self) -> None:
        while self._tokens.get():
            run = self._order.take()
            outcomes: Sequence[Exception | None]
            try:
                outcomes = self._read_run(run.call.reads[run.start : run.end])
            except Exception as error:  # a fault of ours must not leave anybody waiting
                outcomes = [error] * (run.end - run.start)
            self._done.append((run, outcomes))
            self._wake()
            del run, outcomes  # a thread that waits holds nobody's memory
        self._tokens.put(False)  # the end is for every thread

    def _wake(self) -> None:
        if not self._waking and self._loop is not None:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
                self._loop.call_soon_threadsafe(self._deliver)


def _good_bytes(run: _Run, outcomes: Sequence[Exception | None]) -> int:
    reads = zip(run.call.reads[run.start : run.end], outcomes, strict=True)
    return sum(record_bytes(x.location.stored_bytes) for x, error in reads if error is None)
