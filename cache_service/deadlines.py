"""Deadlines: which ids are due. A heap with lazily corrected entries, so that renewing is O(1).

Invariant: an id that was set and not removed has exactly one heap entry, at or before its deadline.
Owned by one table each; event loop only. Times are the injected clock's, in seconds.
"""

import heapq

__all__ = ["Deadlines"]


class Deadlines:
    """Deadline of each id."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: str, at: float) -> None:
        """Sets or moves a deadline; moving is only ever to a later time."""
        known = key in self._at
        assert not known or at >= self._at[key]
        self._at[key] = at
        if not known:
            heapq.heappush(self._heap, (at, key))

    def at(self, key: str) -> float:
        return self._at[key]

    def remove(self, key: str) -> None:
        """Forgets an id; its heap entry goes when it comes up. Ids are never used twice."""
        self._at.pop(key, None)

    def due(self, now: float) -> list[str]:
        """Removes and returns every id whose deadline is at or before `now`."""
        ids = []
        while self._heap and self._heap[0][0] <= now:
            entered, key = heapq.heappop(self._heap)
            at = self._at.get(key)
            if at is None:
                continue
            if at > now or at > entered:
                heapq.heappush(self._heap, (at, key))
                continue
            del self._at[key]
            ids.append(key)
        return ids
