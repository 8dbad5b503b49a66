"""EventLog: the side of the cache that numbers what the tiers gain and lose, and keeps the last.

Invariant: what `read` gives are all changes up to `last_sequence`, and after `settle` that is now.
One writer, the core; event loop only.
"""

from cache_service.events.changes import Changes
from cache_service.events.ring import EventRing
from cache_service.events.runs import BlockRun, EventRun, event_runs
from cache_service.events.snapshot import blocks_between
from cache_service.parts import Parts
from cache_service.side import Side

__all__ = ["EVENTS_PER_READ", "ROWS_PER_CHUNK", "EventLog"]

EVENTS_PER_READ = 4096
"""Events in one message at most: about 300 KB and a few hundred microseconds of the loop."""
ROWS_PER_CHUNK = 4096
"""The same for a snapshot."""


class EventLog(Side):
    """Follows the index from its making; keeps `limits.events_retained` events."""

    def __init__(self, parts: Parts) -> None:
        self._tree = parts.index.tree
        self._ring = EventRing(parts.limits.events_retained)
        self._changes = Changes(self._tree, self._ring.append)
        parts.index.follow_changes(self._changes)

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
        """The next events, `EVENTS_PER_READ` at most. REQUIRES: `keeps(after)`."""
        return event_runs(self._ring.read(after, EVENTS_PER_READ))

    @property
    def row_count(self) -> int:
        """Rows that a snapshot walks."""
        return self._tree.directory.row_high

    def chunk(self, first_row: int) -> tuple[BlockRun, ...]:
        """What `ROWS_PER_CHUNK` rows hold now. True after `settle`, at `last_sequence`."""
        return blocks_between(self._tree, first_row, first_row + ROWS_PER_CHUNK)

    def tick(self) -> None:
        self.settle()

    def check_integrity(self) -> None:
        self.settle()
        assert self.keeps(self.last_sequence)
