"""Deadlines: which requests are late. Seconds of the engine's clock.

Invariant: a request is named late once at most, and never before its time. Those that end earlier
are forgotten when they are more than half of what is kept. Owned by the engine's thread.
"""

import heapq
import math

from worker.live_request import LiveRequest, Phase

__all__ = ["Deadlines"]


class Deadlines:
    """The requests that have a deadline, the earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, LiveRequest]] = []
        self._swept_count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, live: LiveRequest) -> None:
        """Requires a number of its own."""
        if live.request.deadline == math.inf:
            return
        heapq.heappush(self._heap, (live.request.deadline, live.number, live))
        if len(self._heap) > 2 * self._swept_count + 64:
            self._heap = [entry for entry in self._heap if entry[2].phase is not Phase.ENDED]
            heapq.heapify(self._heap)
            self._swept_count = len(self._heap)

    def late(self, now: float) -> list[LiveRequest]:
        """Those that are late and have not ended."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            live = heapq.heappop(self._heap)[2]
            if live.phase is not Phase.ENDED:
                late.append(live)
        return late
