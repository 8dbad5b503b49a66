"""EventLog: the side of the cache that numbers what the tiers gain and lose, and keeps the last.

Invariant: what `read` gives are all changes up to `last_sequence`, and after `settle` that is now.
One writer, the core; event loop only.
"""

from cache_service.events.changes import Changes
from cache_service.events.ring import EventRing
from cache_service.events.runs import BlockRun, EventRun, event_runs
from cache_service.events.snapshot import blocks_from
from cache_service.index import BlockIndex
from cache_service.side import Side
from cache_service.views import CacheLimits

__all__ = ["EventLog"]

RUNS_MAX = 256
"""Runs in one message at most: where neighbours differ, making them takes the time."""


class EventLog(Side):
    """Follows the index from its making; keeps `limits.events_retained` events."""

    def __init__(self, index: BlockIndex, limits: CacheLimits) -> None:
        self._tree = index.tree
        self._ring = EventRing(limits.events_retained)
        self._count_max = limits.events_per_message
        self._changes = Changes(self._tree, self._ring)
        index.follow_changes(self._changes)

    @property
    def last_sequence(self) -> int:
        """Of the newest event; 0 before the first."""
        return self._ring.last_sequence

    def settle(self) -> None:
        """Numbers everything that happened until now."""
        self._changes.settle()

    def keeps(self, after: int) -> bool:
        """True when every event after this one is kept, and it happened."""
        return self._ring.first_sequence - 1 <= after <= self._ring.last_sequence

    def read(self, after: int) -> tuple[EventRun, ...]:
        """The next events, as many as go at once. REQUIRES: `keeps(after)`."""
        return event_runs(self._ring.read(after, self._count_max), RUNS_MAX)

    def chunk(self, row: int) -> tuple[tuple[BlockRun, ...], int | None]:
        """What the rows from this one hold now, as many as go at once, and the next row, if any.

        True after `settle`, at `last_sequence`.
        """
        blocks, end = blocks_from(self._tree, row, self._count_max, RUNS_MAX)
        return blocks, end if end < self._tree.directory.row_high else None

    def tick(self) -> None:
        self.settle()

    def check_integrity(self) -> None:
        self.settle()
        assert self.keeps(self.last_sequence)
