"""ReadOrder: which run of records is read next, of all that wait.

    start of a run = max(the order's time - credit, where its flow's last run ended)
    taken: the least start first; the time moves on with every byte taken

Start-time fair queueing. A flow is whoever reads one thing after the other (an acquire): its runs
go in the order in which they were asked for, flows that read at the same time get equal bytes, and
one that asks for little goes first. Invariants: a run is taken once; the time never goes back and
every run taken moves it on, so that whatever comes later, only so many bytes pass a run that waits.
Any thread; a lock guards it, for less than a microsecond where flows do not share runs.
"""

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["ReadFlow", "ReadOrder"]

RunT = TypeVar("RunT")

CREDIT_BYTES = 4 << 20
"""Who asked for nothing lately is that much ahead: what he asks for first goes before the next runs
of all that read all the time."""

PASSING = 4
"""The time moves on by a run's bytes over this and the number of waiting runs: slower than any of
the flows that take turns, but it moves."""


_NEVER = float("-inf")


class ReadFlow:
    """Whoever reads one thing after the other. One order's; changed by it alone."""

    __slots__ = ("end", "waiting")

    def __init__(self) -> None:
        self.end = _NEVER
        """Where its last run ends in the order's time."""
        self.waiting = 0
        """Its runs that were not taken yet."""

    @property
    def new(self) -> bool:
        """It has not asked for anything yet."""
        return self.end == _NEVER


_NOBODY = ReadFlow()


class _Entry(Generic[RunT]):
    __slots__ = ("flow", "run", "size_bytes", "start", "taken")

    def __init__(self, run: RunT, size_bytes: int) -> None:
        self.run = run
        self.size_bytes = size_bytes
        self.flow = _NOBODY
        self.start = 0.0
        self.taken = False


class ReadOrder(Generic[RunT]):
    """Runs that wait. Whoever takes one knows that there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, _Entry[RunT]]] = []
        """Entries that were moved forward are in it twice, until the later place comes up."""
        self._numbers = itertools.count()
        self._time = 0.0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def waits_for_others(self, flow: ReadFlow) -> bool:
        """Whether runs of other flows wait."""
        return self._waiting > flow.waiting

    def put(self, run: RunT, flow: ReadFlow, size_bytes: int) -> None:
        """`run` waits, behind those of its flow."""
        with self._lock:
            self._enter(_Entry(run, size_bytes), flow, self._turn(flow))
            self._waiting += 1

    def take(self) -> RunT:
        """The next run. REQUIRES: there is one."""
        with self._lock:
            while True:
                start, _, entry = heapq.heappop(self._heap)
                if not entry.taken:
                    break
            entry.taken = True
            self._time = max(self._time, start)
            self._time += entry.size_bytes / (PASSING * (1 + self._waiting))
            self._waiting -= 1
            entry.flow.waiting -= 1
            return entry.run

    def sooner(self, wanted: Callable[[RunT], bool], flow: ReadFlow) -> None:
        """Runs of others that are `wanted` by `flow` too become its own, with its turn, where that
        is before theirs."""
        with self._lock:
            entries = {id(e): e for _, _, e in self._heap if not e.taken and e.flow is not flow}
            found = sorted(
                (e for e in entries.values() if wanted(e.run)), key=lambda e: (e.start, id(e))
            )
            for entry in found:
                turn = self._turn(flow)
                if turn < entry.start:
                    entry.flow.waiting -= 1
                    self._enter(entry, flow, turn)
            if len(self._heap) > 2 * self._waiting + 64:
                self._sweep()

    def _turn(self, flow: ReadFlow) -> float:
        return max(self._time - CREDIT_BYTES, flow.end)

    def _enter(self, entry: _Entry[RunT], flow: ReadFlow, start: float) -> None:
        """A place for an entry, and its flow is charged for it."""
        entry.flow, entry.start = flow, start
        flow.end = start + entry.size_bytes
        flow.waiting += 1
        heapq.heappush(self._heap, (start, next(self._numbers), entry))

    def _sweep(self) -> None:
        """Leaves each run at its first place only."""
        first: dict[int, tuple[float, int, _Entry[RunT]]] = {}
        for place in sorted(self._heap, key=lambda place: place[:2]):
            if not place[2].taken:
                first.setdefault(id(place[2]), place)
        self._heap = list(first.values())
