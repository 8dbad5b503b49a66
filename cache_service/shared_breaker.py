"""Breaker: is the shared tier worth asking? Opens after failures, tries again alone.

    closed --3 failures in a row--> open --5 s--> one call --well--> closed
                                     ^------------------fails, 10, 20, 40, 60 s

Invariant: while it is open at most one call is under way, and only once its time has come. Whoever
began says how it ended. Event loop only.
"""

from collections.abc import Callable

__all__ = ["Breaker"]

FAILURES_MAX = 3
RETRY_SECONDS = 5.0
RETRY_SECONDS_MAX = 60.0


class Breaker:
    """`clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._retry_at: float | None = None
        """None: closed."""
        self._wait = RETRY_SECONDS
        self._trying = False

    @property
    def state(self) -> str:
        """ "closed", "open" or "half_open"."""
        if self._retry_at is None:
            return "closed"
        return "half_open" if self._trying or self._clock() >= self._retry_at else "open"

    @property
    def ready(self) -> bool:
        """Whether `begin` would let a call through."""
        return self._retry_at is None or (not self._trying and self._clock() >= self._retry_at)

    def begin(self) -> bool:
        """Lets a call through, or not. Of one that was, say how it ended."""
        if not self.ready:
            return False
        self._trying = self._retry_at is not None
        return True

    def succeeded(self) -> None:
        self._failures, self._retry_at, self._wait = 0, None, RETRY_SECONDS
        self._trying = False

    def failed(self) -> None:
        self._failures += 1
        if self._trying:
            self._wait = min(2 * self._wait, RETRY_SECONDS_MAX)
        elif self._failures < FAILURES_MAX or self._retry_at is not None:
            return
        self._trying = False
        self._retry_at = self._clock() + self._wait

    def abandoned(self) -> None:
        """A call was given up by its caller: it says nothing."""
        self._trying = False
