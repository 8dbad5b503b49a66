"""ReadRate: how fast the SSD gives blocks, measured on every block that comes from it.

    rate = payload bytes landed / seconds in which at least one read was under way

Both sums fade with busy time, so that what was read `FADE_SECONDS` ago weighs a third of what is
read now, and a pause weighs nothing. Invariant: nothing is told before something was measured. One
writer, on the event loop.
"""

import math

__all__ = ["ReadRate"]

FADE_SECONDS = 2.0


class ReadRate:
    """Payload bytes a second, over the reads of all callers together."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._counted_until = -math.inf

    def landed(self, payload_bytes: int, began: float, ended: float) -> None:
        """A read gave that much. Times in seconds of one clock; reads may overlap."""
        busy = max(0.0, ended - max(began, self._counted_until))
        self._counted_until = max(ended, self._counted_until)
        fade = math.exp(-busy / FADE_SECONDS)
        self._bytes = self._bytes * fade + payload_bytes
        self._seconds = self._seconds * fade + busy

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
