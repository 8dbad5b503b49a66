"""Pre-write free segments ahead of need, a few MiB at a time.

Writing into blocks that a file system has only reserved costs a journal entry for each write; after
one pass of zeros it does not. Invariant: only free segments are touched, and only from the writer
thread, so a step never races with an append. At most `_AHEAD_COUNT` free segments are made ready:
more would be writes that nobody waits for.
"""

from collections.abc import Callable
from dataclasses import replace

from storage.env import Env
from storage.ssd.files import aligned_buffer, write_all
from storage.ssd.segments import FREE, Segment, SegmentTable
from storage.tier import PAGE_BYTES

__all__ = ["Prewriter"]

_AHEAD_COUNT = 2
_STEP_BYTES = 8 << 20
"""4 ms at 2 GB/s: the longest an append waits for this."""


class Prewriter:
    """Owned by the writer thread."""

    def __init__(
        self,
        env: Env,
        table: SegmentTable,
        remember: Callable[[Segment], None],
        count: Callable[[int, int], None],
    ) -> None:
        """`remember` makes a ready segment's state durable, so that no start does it again; `count`
        is told payload and bytes before they are written."""
        self._env = env
        self._table = table
        self._remember = remember
        self._count = count
        self._zeros = aligned_buffer(min(_STEP_BYTES, table.segment_bytes))
        self.written_bytes = 0
        """Zeros written since open."""

    def wanted(self) -> bool:
        """True while a step would do something."""
        return self._next() is not None

    def step(self) -> None:
        """Writes one piece. Raises OSError, TierIOError; the segment stays usable as it is."""
        segment = self._next()
        if segment is None:
            return
        start = max(segment.prewritten_bytes, PAGE_BYTES)
        size = min(self._zeros.nbytes, self._table.segment_bytes - start)
        self._count(0, size)
        write_all(self._env, segment.fd, [self._zeros[:size]], start)
        self.written_bytes += size
        done = start + size
        ready = replace(segment, prewritten_bytes=done)
        if done < self._table.segment_bytes:
            self._table.put(ready)
        else:
            self._env.fdatasync(segment.fd)
            self._remember(ready)

    def _next(self) -> Segment | None:
        """The first free segment that is not ready, unless enough others are."""
        free = self._table.free_segments()[:_AHEAD_COUNT]
        return next(
            (s for s in free if s.state == FREE and s.prewritten_bytes < self._table.segment_bytes),
            None,
        )
