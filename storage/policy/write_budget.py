"""WriteBudget: how many bytes may go to the SSD, spread over the day. Pure.

A bucket that fills at the day's rate and holds at most an hour of it, so that a burst is written
and a day's bytes are not gone by noon. The lower half is kept for blocks that were used again: when
writes are short they go to what is known to be wanted.

What the budget costs is counted: blocks and bytes turned away, and the hits lost, which are misses
on a block that was turned away and is still remembered.
"""

import math

from storage.policy.ghosts import Ghosts

__all__ = ["WriteBudget", "day_needed_bytes"]

DAY_SECONDS = 86_400
BURST_SECONDS = 3_600
KEPT_SHARE = 0.5


def day_needed_bytes(size: int) -> int:
    """The least daily budget that ever lets in a new block of that size."""
    return math.ceil(size / (1 - KEPT_SHARE) * DAY_SECONDS / BURST_SECONDS)


class WriteBudget:
    """Every call costs O(1). Not thread-safe."""

    def __init__(self, bytes_per_day: int, names_max: int) -> None:
        """`names_max` bounds how many blocks turned away are remembered."""
        self._bytes_per_second = bytes_per_day / DAY_SECONDS
        self._bytes_max = self._bytes_per_second * BURST_SECONDS
        self._bytes = self._bytes_max
        self._time: float | None = None
        self._names_max = names_max
        self._turned_away = Ghosts()
        self.turned_away_blocks = 0
        self.turned_away_bytes = 0
        self.lost_hits = 0

    def resume(self, left_bytes: int, seconds_since: float) -> None:
        """Goes on from what an earlier life had left, so long ago. REQUIRES: before any other call.

        A debt of more than a day, of a budget that was larger, is not carried on.
        """
        left = max(float(left_bytes), -DAY_SECONDS * self._bytes_per_second)
        earned = max(0.0, seconds_since) * self._bytes_per_second
        self._bytes = min(self._bytes_max, left + earned)

    def left_bytes(self, now_seconds: float) -> int:
        """What is in the bucket now; below zero while a debt is paid off."""
        self._fill(now_seconds)
        return math.floor(self._bytes)

    def allowed_bytes(self, now_seconds: float) -> int:
        """What may be written at once now."""
        self._fill(now_seconds)
        return max(0, int(self._bytes))

    def allowed_new_bytes(self, now_seconds: float) -> int:
        """The same for blocks that were not used again."""
        self._fill(now_seconds)
        return max(0, int(self._bytes - KEPT_SHARE * self._bytes_max))

    def allows(self, size: int, now_seconds: float, used_again: bool) -> bool:
        """May so many bytes be written now, of a block that was or was not used again?"""
        self._fill(now_seconds)
        return self._bytes - size >= (0.0 if used_again else KEPT_SHARE * self._bytes_max)

    def spend(self, name: int, size: int, now_seconds: float, used_again: bool) -> bool:
        """True when the block may be written: its bytes are spent. Else it is turned away."""
        if not self.allows(size, now_seconds, used_again):
            self.turn_away(name, size)
            return False
        self._bytes -= size
        self._turned_away.discard(name)
        return True

    def turn_away(self, name: int, size: int) -> None:
        """Counts a block, once while it is remembered, as kept from the SSD by the budget."""
        if name not in self._turned_away:
            self.turned_away_blocks += 1
            self.turned_away_bytes += size
            self._turned_away.add(name)
            self._turned_away.trim(self._names_max)

    def charge(self, size: int) -> None:
        """Bytes that had to be written, budget or not: re-logged ones. Later writes wait for it."""
        self._bytes -= size

    def missed(self, name: int) -> None:
        """A block was asked for and is nowhere: a hit lost, if it was turned away."""
        self.lost_hits += self._turned_away.discard(name)

    def _fill(self, now_seconds: float) -> None:
        """A clock that steps back fills nothing."""
        elapsed = 0.0 if self._time is None else max(0.0, now_seconds - self._time)
        self._time = now_seconds
        self._bytes = min(self._bytes_max, self._bytes + elapsed * self._bytes_per_second)
