"""Calls in flight: how many there are, of whom, and how many were refused for it.

    begin -> served -> end          a call beyond a limit: TooManyCallsError, counted, and told in
                                    the log once in a while, for a crowd is told by the thousand

Invariant: no more than `calls_max` calls are served at a time, nor more than
`calls_per_session_max` of one session or caller. Written by the gate, on the server's event loop;
the two counts may be read from any thread.
"""

import logging
import time
from collections.abc import Callable

from kvtier.access import CallLimits, TooManyCallsError

__all__ = ["Calls", "Place", "Places"]

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0
"""Between two lines that say how many calls were refused."""


class Places:
    """Calls in flight by name, so many of each name."""

    def __init__(self, limit: str, each_max: int, way_out: str) -> None:
        self._limit, self._each_max, self._way_out = limit, each_max, way_out
        self._of: dict[str, int] = {}

    def begin(self, name: str) -> None:
        """One more; `end` follows. Raises TooManyCallsError."""
        count = self._of.get(name, 0)
        if count >= self._each_max:
            raise TooManyCallsError(
                f"{count} such calls of this session or caller are being served; {self._way_out}",
                **{self._limit: self._each_max},
            )
        self._of[name] = count + 1

    def end(self, name: str) -> None:
        self._of[name] -= 1
        if not self._of[name]:
            del self._of[name]


class Calls:
    """Calls in flight, all together and by session or caller."""

    def __init__(self, limits: CallLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._all_max = limits.calls_max
        self._places = Places(
            "calls_per_session_max",
            limits.calls_per_session_max,
            "wait for one to end, or raise limits.calls_per_session_max",
        )
        self._clock = clock
        self._told_at: float | None = None
        self._told_count = 0
        self.count = 0
        """Those that are being served and count against the limits."""
        self.refused_count = 0
        """Calls refused for a limit, since the start."""

    def begin(self, name: str) -> None:
        """One more; `end` follows. Raises TooManyCallsError."""
        try:
            self._begin(name)
        except TooManyCallsError as error:
            self.refused(error)
            raise

    def end(self, name: str) -> None:
        self._places.end(name)
        self.count -= 1

    def move(self, old: str, new: str) -> None:
        """A call that counted for one counts for another. Raises TooManyCallsError."""
        try:
            self._places.begin(new)
        except TooManyCallsError as error:
            self.refused(error)
            raise
        self._places.end(old)

    def refused(self, error: TooManyCallsError) -> None:
        """Counts a refusal, and tells of some in the log."""
        self.refused_count += 1
        now = self._clock()
        if self._told_at is not None and now - self._told_at < LOG_SECONDS:
            return
        log.warning(
            "calls are refused with TOO_MANY_CALLS: %s",
            error,
            extra={
                "refused_count": self.refused_count - self._told_count,
                "served_count": self.count,
            },
        )
        self._told_at, self._told_count = now, self.refused_count

    def _begin(self, name: str) -> None:
        if self.count >= self._all_max:
            raise TooManyCallsError(
                f"{self._all_max} calls are being served; try again, or raise limits.calls_max",
                calls_max=self._all_max,
            )
        self._places.begin(name)
        self.count += 1


class Place:
    """One call's place: its caller's, until its first message names a session."""

    def __init__(self, calls: Calls, name: str) -> None:
        calls.begin(name)
        self._calls, self._name = calls, name

    def move(self, name: str) -> None:
        """Raises TooManyCallsError; the place is then the old one."""
        if name != self._name:
            self._calls.move(self._name, name)
            self._name = name

    def end(self) -> None:
        self._calls.end(self._name)
