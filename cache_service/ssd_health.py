"""SsdHealth: is the SSD worth asking? A breaker over its I/O errors.

One bad record is a miss of that block. `FAILURES_MAX` errors in a row mean the device: the tier
counts as absent for `retry_seconds`, then it is tried again. Event loop only.
"""

from collections.abc import Callable

__all__ = ["SsdHealth"]

FAILURES_MAX = 3


class SsdHealth:
    """Counts consecutive I/O errors. `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float], retry_seconds: float) -> None:
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._failures = 0
        self._absent_until = float("-inf")
        self.success_count = 0
        """I/O operations that succeeded since the start."""

    @property
    def available(self) -> bool:
        return self._clock() >= self._absent_until

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            retry_at = self._clock() + self._retry_seconds
            self._absent_until = max(self._absent_until, retry_at)

    def retire(self) -> None:
        """The tier is being closed: absent for good."""
        self._absent_until = float("inf")

    def succeeded(self) -> None:
        self.success_count += 1
        self._failures = 0
