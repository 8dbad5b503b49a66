"""Watching: watchers of the events, each at its own position in the log.

    from now | after a position | from a snapshot   ->   events as they happen, until somebody ends

A watcher holds nothing but its position: who reads slowly falls behind, and is cut off when its
next event is kept no more. Invariants: `watchers_max` at a time; a view holds at most
`events_per_message` events and as many rows, and the loop is given away between two. Event loop
only.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from cache_service.errors import EventsLostError, TooManyWatchersError, WatcherStalledError
from cache_service.events.log import EventLog
from cache_service.events.runs import BlockRun, EventRun
from cache_service.listener import CacheListener
from cache_service.views import CacheLimits

__all__ = ["Position", "WatchView", "Watching"]

SILENCE_SECONDS_MAX = 5.0
"""A message at least so often: who hears nothing for much longer has lost the service."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the events of one start of the service: after event `sequence`."""

    instance_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class WatchView:
    """A step of a watch: `events`, then `blocks` of a snapshot, and where that leads."""

    position: Position
    events: tuple[EventRun, ...] = ()
    blocks: tuple[BlockRun, ...] = ()
    snapshot_under_way: bool = False
    snapshot_done: bool = False
    """With the last view of a snapshot."""


class Watching:
    """Who watches now. `clock` in seconds, monotonic."""

    def __init__(
        self,
        log: EventLog,
        instance_id: str,
        limits: CacheLimits,
        clock: Callable[[], float],
        listener: CacheListener,
    ) -> None:
        self._log = log
        self._instance_id = instance_id
        self._limits = limits
        self._clock = clock
        self._listener = listener
        self._ended = asyncio.Event()
        self.watcher_count = 0

    @property
    def last_sequence(self) -> int:
        """Of the newest event; 0 before the first."""
        self._log.settle()
        return self._log.last_sequence

    @property
    def stall_seconds(self) -> float:
        """How long a watcher may take nothing."""
        return self._limits.watch_stall_seconds

    def stalled(self) -> WatcherStalledError:
        """What a watcher is cut off with that did."""
        self._listener.watcher_cut("stalled")
        return WatcherStalledError(
            f"the watcher took nothing for {self.stall_seconds:g} seconds; watch again after the"
            " last position"
        )

    def end(self) -> None:
        """Every watch ends within one batch, and new ones at once. Idempotent."""
        self._ended.set()

    async def watch(
        self, after: Position | None, snapshot: bool
    ) -> AsyncGenerator[WatchView, None]:
        """Views, the first one at once, until `end`. Closed: the watcher's place is free.

        Raises TooManyWatchersError, EventsLostError.
        """
        with self._place():
            sent = self._begin(after)
            row: int | None = 0 if snapshot else None
            while row is not None and not self._ended.is_set():
                view, row = self._snapshot_step(sent, row)
                sent = view.position.sequence
                yield view
            told_at = None
            while not self._ended.is_set():
                view = self._step(sent)
                sent = view.position.sequence
                now = self._clock()
                if view.events or told_at is None or now >= told_at + SILENCE_SECONDS_MAX:
                    told_at = now
                    yield view
                if sent == self._log.last_sequence:
                    await self._pause()

    def _begin(self, after: Position | None) -> int:
        self._log.settle()
        if after is None:
            return self._log.last_sequence
        if after.instance_id != self._instance_id:
            raise self._lost("the position is of another start of the service")
        return after.sequence

    def _step(self, sent: int) -> WatchView:
        """The events after `sent`, as many as go at once."""
        self._log.settle()
        if not self._log.keeps(sent):
            self._listener.watcher_cut("events_lost")
            raise self._lost(f"what happened after {sent} is not kept")
        runs = self._log.read(sent)
        sent += sum(run.count for run in runs)
        return WatchView(Position(self._instance_id, sent), runs)

    def _snapshot_step(self, sent: int, row: int) -> tuple[WatchView, int | None]:
        """The same, with a chunk from `row` where it is up to date; and the next row, if any.

        A chunk is what is so after the view's last event: nothing may happen between the two.
        """
        view = self._step(sent)
        if view.position.sequence < self._log.last_sequence:
            return WatchView(view.position, view.events, snapshot_under_way=True), row
        blocks, next_row = self._log.chunk(row)
        done = next_row is None
        return WatchView(view.position, view.events, blocks, not done, done), next_row

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.event_batch_seconds):
                await self._ended.wait()

    def _lost(self, why: str) -> EventsLostError:
        return EventsLostError(
            f"{why}; watch from a snapshot",
            instance_id=self._instance_id,
            last_sequence=self._log.last_sequence,
        )

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self.watcher_count >= self._limits.watchers_max:
            raise TooManyWatchersError(
                f"{self.watcher_count} watch already; end one, or raise events.watchers_max",
                watchers_max=self._limits.watchers_max,
            )
        self.watcher_count += 1
        try:
            yield
        finally:
            self.watcher_count -= 1
