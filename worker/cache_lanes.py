"""Threads that call the cache service, so that the step loop never waits for it.

    QUEUED -> RUNNING -> DONE        the engine collects it
        \\--> REVOKED                 the engine took it back before a thread did

Loads and stores have lanes of their own: a slow store never delays a load. Both queues are bounded
and a full one refuses. Invariant: a job is run at most once, and never after it was revoked; when
it is done its pages are touched no more. The threads own nothing but the job they run; they are
daemons, so that a call that never returns does not keep the process alive.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from worker.cache_port import (
    NO_HINTS,
    CacheHints,
    CachePort,
    RestoreResult,
    StoreResult,
)
from worker.landing import Landing, Source

__all__ = ["CacheLanes", "Job", "LoadJob", "StoreJob"]

log = logging.getLogger(__name__)

JOIN_SECONDS = 2.0


class _Progress(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REVOKED = "revoked"


@dataclass(slots=True, eq=False)
class LoadJob:
    """Restore a chain into pages. `result` is there once the job is done."""

    request_id: str
    chain: Sequence[BlockHash]
    pages: Landing
    deadline: float
    hints: CacheHints = NO_HINTS
    recompute_seconds: float | None = None
    """What computing a block of the chain costs; None: unknown."""
    result: RestoreResult = field(default_factory=lambda: _nothing(MissReason.UNAVAILABLE))
    progress: _Progress = _Progress.QUEUED

    @property
    def waiting(self) -> bool:
        """Whether no thread has taken it yet."""
        return self.progress is _Progress.QUEUED

    def run(self, cache: CachePort, clock: Callable[[], float]) -> None:
        remaining = self.deadline - clock()
        if remaining <= 0:
            self.result = _nothing(MissReason.DEADLINE)
            return
        with contextlib.closing(self.pages):
            result = cache.restore(
                self.request_id,
                self.chain,
                self.pages,
                remaining,
                self.hints,
                self.recompute_seconds,
            )
        if len(result.tiers) > len(self.chain):
            raise ValueError("the cache restored more blocks than it was asked for")
        self.result = result


@dataclass(slots=True, eq=False)
class StoreJob:
    """Offer a chain. `result` is None when the offer failed."""

    request_id: str
    chain: Sequence[BlockHash]
    pages: Source
    hints: CacheHints = NO_HINTS
    result: StoreResult | None = None
    progress: _Progress = _Progress.QUEUED

    @property
    def waiting(self) -> bool:
        """Whether no thread has taken it yet."""
        return self.progress is _Progress.QUEUED

    def run(self, cache: CachePort, clock: Callable[[], float]) -> None:
        with contextlib.closing(self.pages):
            self.result = cache.store(self.request_id, self.chain, self.pages, self.hints)


Job = LoadJob | StoreJob


class CacheLanes:
    """`load_threads` threads load and one stores; 0 runs every job at once on the calling thread.

    `on_done` is called after each job, on the thread that ran it.
    """

    def __init__(
        self,
        cache: CachePort,
        clock: Callable[[], float],
        on_done: Callable[[], None],
        load_threads: int,
        stores_waiting_max: int,
        loads_waiting_max: int,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._on_done = on_done
        self._lock = threading.Lock()
        self._done: list[Job] = []
        self._inline = load_threads == 0
        self._loads: queue.Queue[Job | None] = queue.Queue(loads_waiting_max)
        self._stores: queue.Queue[Job | None] = queue.Queue(stores_waiting_max)
        self._threads = [
            threading.Thread(
                target=self._work, args=(self._loads,), name=f"kvtier-load-{n}", daemon=True
            )
            for n in range(load_threads)
        ]
        if not self._inline:
            self._threads.append(
                threading.Thread(
                    target=self._work, args=(self._stores,), name="kvtier-store", daemon=True
                )
            )
        for thread in self._threads:
            thread.start()

    def load(self, job: LoadJob) -> bool:
        """Queues `job`; False when the lane is full."""
        return self._enqueue(self._loads, job)

    def store(self, job: StoreJob) -> bool:
        """Queues `job`; False when the lane is full."""
        return self._enqueue(self._stores, job)

    def revoke(self, job: Job) -> bool:
        """Takes `job` back; False when a thread has taken it already."""
        with self._lock:
            if job.progress is not _Progress.QUEUED:
                return False
            job.progress = _Progress.REVOKED
            return True

    def collect(self) -> list[Job]:
        """Jobs done since the last call. Bounded by the jobs that were queued."""
        with self._lock:
            done, self._done = self._done, []
            return done

    def stop(self) -> None:
        """Revokes what is queued and waits a little for the threads."""
        for lane in (self._loads, self._stores):
            self._empty(lane)
            lane.put(None)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _enqueue(self, lane: "queue.Queue[Job | None]", job: Job) -> bool:
        if self._inline:
            self._run(job)
            return True
        try:
            lane.put_nowait(job)
        except queue.Full:
            return False
        return True

    def _work(self, lane: "queue.Queue[Job | None]") -> None:
        while (job := lane.get()) is not None:
            self._run(job)
        # The lane's other threads end by the same mark.
        lane.put(None)

    def _run(self, job: Job) -> None:
        with self._lock:
            if job.progress is not _Progress.QUEUED:
                return
            job.progress = _Progress.RUNNING
        try:
            job.run(self._cache, self._clock)
        except Exception:
            # A cache that breaks its promise is a miss, never a failed request.
            log.exception("the cache service's client raised")
        with self._lock:
            job.progress = _Progress.DONE
            self._done.append(job)
        self._on_done()

    def _empty(self, lane: "queue.Queue[Job | None]") -> None:
        while True:
            try:
                job = lane.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                self.revoke(job)


def _nothing(reason: MissReason) -> RestoreResult:
    return RestoreResult((), reason)
