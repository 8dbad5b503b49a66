"""SegmentReads: how many reads of each segment are in flight, so that none is recycled under one.

Event loop only.
"""

import asyncio
from collections import Counter

from storage.tier import SegmentId

__all__ = ["SegmentReads"]


class SegmentReads:
    """Counts reads by segment."""

    def __init__(self) -> None:
        self._reads: Counter[SegmentId] = Counter()
        self._finished = asyncio.Event()

    def begin(self, segment_id: SegmentId) -> None:
        """A read of the segment begins; `end` follows once, whatever becomes of it."""
        self._reads[segment_id] += 1

    def end(self, segment_id: SegmentId) -> None:
        self._reads[segment_id] -= 1
        if not self._reads[segment_id]:
            del self._reads[segment_id]
            finished, self._finished = self._finished, asyncio.Event()
            finished.set()

    async def idle(self, segment_id: SegmentId) -> None:
        """Returns when no read of the segment is in flight; reads are bounded by the tier."""
        while segment_id in self._reads:
            await self._finished.wait()

    def check_idle(self) -> None:
        assert not self._reads
