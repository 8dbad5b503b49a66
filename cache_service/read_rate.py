"""ReadRate: how fast the SSD gives blocks, measured on every block that comes from it.

    rate = payload bytes landed / seconds in which at least one read was under way

Both sums fade with busy time, so that what was read `FADE_SECONDS` ago weighs a third of what is
read now, and a pause weighs nothing. Reads that had little company say how long a read takes, not
what the disk gives: they count only until others did. Invariant: nothing is told before something
was measured. One writer, on the event loop.
"""

import math

__all__ = ["ReadRate"]

FADE_SECONDS = 2.0

FRESH_SECONDS = 10.0
"""A rate that nothing confirmed for longer is no ground to leave the disk alone any more."""


class ReadRate:
    """Payload bytes a second, over the reads that are told of."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._counted_until = -math.inf
        self._busy = False
        """Whether what is counted was read while enough else was."""

    def landed(self, payload_bytes: int, began: float, ended: float, busy: bool = True) -> None:
        """A read gave that much. Times in seconds of one clock; reads may overlap. `busy`: enough
        was being read at a time to show what the disk gives."""
        if busy is not self._busy:
            if not busy:
                return
            self._bytes = self._seconds = 0.0
            self._busy = True
        seconds = self._since(began, ended)
        self._counted_until = max(ended, self._counted_until)
        fade = math.exp(-seconds / FADE_SECONDS)
        self._bytes = self._bytes * fade + payload_bytes
        self._seconds = self._seconds * fade + seconds

    @property
    def bytes_per_second(self) -> float | None:
        """None: nothing was measured."""
        return self._bytes / self._seconds if self._seconds else None

    def seconds(self, payload_bytes: int) -> float | None:
        """What so much takes at this rate; None: nothing was measured. Nothing takes no time."""
        rate = self.bytes_per_second
        if not payload_bytes:
            return 0.0
        return None if rate is None else payload_bytes / rate

    def silent_seconds(self, now: float, reading_since: float | None) -> float:
        """How long nothing has landed although something was being read. `reading_since`: when the
        oldest read under way began; None when there is none."""
        return 0.0 if reading_since is None else self._since(reading_since, now)

    def judged(self, now: float, reading_since: float | None) -> float | None:
        """Bytes a second to decide by: the silence counts, as time in which nothing landed. None
        where nothing was measured that is fresh and tells what the disk gives."""
        silent = self.silent_seconds(now, reading_since)
        old = reading_since is None and now - self._counted_until > FRESH_SECONDS
        if old or not self._busy or not self._seconds:
            return None
        fade = math.exp(-silent / FADE_SECONDS)
        return self._bytes * fade / (self._seconds * fade + silent)

    def _since(self, began: float, now: float) -> float:
        return max(0.0, now - max(began, self._counted_until))
