"""Breaker: decides whether a peer is worth asking at all.

    closed --failures_max in a row--> open --wait over--> half-open --probe succeeds--> closed
                                       ^                      |
                                       +----- probe fails, wait doubles, up to a limit

Invariant: while open, ordinary calls are refused at once, and at most one probe runs at a time. So
a dead or hung peer costs a caller at most `failures_max` timeouts, whatever the peer does later.
Only what the peer itself does wrong counts: a typed refusal is an answer, not a failure.

Who has a thread for probes asks `admits` for calls and `begin_probe` there; who probes with its
ordinary calls asks `begin`, and says of each how it ended: `succeeded`, `failed` or `abandoned`.

Any thread; a short lock guards four fields. The clock is injected.
"""

import threading
from collections.abc import Callable
from enum import Enum

__all__ = ["Breaker", "BreakerState"]


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after `failures_max` failures in a row; `clock` gives monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        failures_max: int = 3,
        wait_seconds: float = 0.5,
        wait_seconds_max: float = 15.0,
    ) -> None:
        if failures_max < 1 or not 0 < wait_seconds <= wait_seconds_max:
            raise ValueError("a breaker needs failures_max >= 1 and 0 < wait <= the longest wait")
        self._clock = clock
        self._failures_max = failures_max
        self._wait_seconds_first = wait_seconds
        self._wait_seconds_max = wait_seconds_max
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._failure_count = 0
        self._wait_seconds = wait_seconds
        self._probe_time = 0.0

    @property
    def state(self) -> BreakerState:
        return self._state

    def admits(self) -> bool:
        """Whether an ordinary call may go out now."""
        return self._state is BreakerState.CLOSED

    @property
    def ready(self) -> bool:
        """Whether `begin` would let a call through."""
        with self._lock:
            return self._state is BreakerState.CLOSED or self._due()

    def begin(self) -> bool:
        """Whether a call may go out now, as a probe where one is due."""
        return self.admits() or self.begin_probe()

    def begin_probe(self) -> bool:
        """True once per wait while open: the caller then probes and reports how it went."""
        with self._lock:
            if not self._due():
                return False
            self._state = BreakerState.HALF_OPEN
            return True

    def seconds_to_probe(self) -> float | None:
        """How long until a probe is due; None unless open."""
        with self._lock:
            if self._state is not BreakerState.OPEN:
                return None
            return max(0.0, self._probe_time - self._clock())

    def succeeded(self) -> None:
        """The peer answered. While open that is a late answer, and closes nothing."""
        with self._lock:
            self._failure_count = 0
            if self._state is BreakerState.HALF_OPEN:
                self._state = BreakerState.CLOSED
                self._wait_seconds = self._wait_seconds_first

    def abandoned(self) -> None:
        """A call was given up by its caller: it says nothing. The next may probe at once."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN:
                self._state = BreakerState.OPEN
                self._probe_time = self._clock()

    def failed(self) -> None:
        """The peer did not answer, not in time, or not in our language."""
        with self._lock:
            if self._state is BreakerState.OPEN:
                return
            self._failure_count += 1
            if self._state is BreakerState.HALF_OPEN:
                self._wait_seconds = min(2 * self._wait_seconds, self._wait_seconds_max)
            elif self._failure_count < self._failures_max:
                return
            self._state = BreakerState.OPEN
            self._probe_time = self._clock() + self._wait_seconds

    def given_up(self) -> None:
        """Who asked did not wait for the peer: it says nothing. A probe's place is free again."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN:
                self._state = BreakerState.OPEN

    def _due(self) -> bool:
        return self._state is BreakerState.OPEN and self._clock() >= self._probe_time
