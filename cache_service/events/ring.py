"""EventRing: the last events by sequence number, in columns that are never more than so many.

Invariant: `first_sequence .. last_sequence` are kept, without a gap. Memory is taken as it is used
and then stays: `EVENT_BYTES` an event. Written by the log; event loop only.
"""

import numpy as np

from cache_service.events.changes import EventColumns

__all__ = ["EVENT_BYTES", "EventRing"]

HASH_BYTES = 32
EVENT_BYTES = 2 + 3 * HASH_BYTES + 8


class EventRing:
    """Keeps `capacity` events, at least 1; the oldest make room."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._columns = EventColumns(
            np.empty(capacity, np.uint16),
            np.empty((capacity, 4), np.uint64),
            np.empty((capacity, 4), np.uint64),
            np.empty((capacity, 4), np.uint64),
            np.empty(capacity, np.int64),
        )
        # The same memory, for one event at a time.
        self._codes = self._columns.codes.data
        self._hashes = self._columns.hashes.reshape(-1).data.cast("B")
        self._parents = self._columns.parents.reshape(-1).data.cast("B")
        self._namespaces = self._columns.namespaces.reshape(-1).data.cast("B")
        self._block_bytes = self._columns.block_bytes.data
        self.last_sequence = 0
        """Of the newest event; 0 before the first."""

    @property
    def first_sequence(self) -> int:
        """Of the oldest event that is kept; one more than the last when none is."""
        return max(1, self.last_sequence - self._capacity + 1)

    def append(self, events: EventColumns) -> None:
        """Gives the events the next numbers. Of more than the capacity the last ones stay."""
        count = len(events)
        kept = min(count, self._capacity)
        self._write(self.last_sequence + count - kept, events.part(count - kept, count))
        self.last_sequence += count

    def append_one(
        self, code: int, block_hash: bytes, parent: bytes, namespace_id: bytes, block_bytes: int
    ) -> None:
        """The same for one event; hashes and namespace have 32 bytes."""
        at = self.last_sequence % self._capacity
        start, end = at * HASH_BYTES, (at + 1) * HASH_BYTES
        self._codes[at] = code
        self._hashes[start:end] = block_hash
        self._parents[start:end] = parent
        self._namespaces[start:end] = namespace_id
        self._block_bytes[at] = block_bytes
        self.last_sequence += 1

    def read(self, after: int, count_max: int) -> EventColumns:
        """Events `after + 1 ..`, so many at most, up to where the ring turns over: perhaps fewer
        than there are. REQUIRES: first_sequence - 1 <= after <= last_sequence."""
        assert self.first_sequence - 1 <= after <= self.last_sequence
        start = after % self._capacity
        count = min(count_max, self.last_sequence - after, self._capacity - start)
        return self._columns.part(start, start + count)

    def _write(self, before: int, events: EventColumns) -> None:
        start, done = before % self._capacity, 0
        while done < len(events):
            count = min(len(events) - done, self._capacity - start)
            place, part = self._columns.part(start, start + count), events.part(done, done + count)
            place.codes[:] = part.codes
            place.hashes[:] = part.hashes
            place.parents[:] = part.parents
            place.namespaces[:] = part.namespaces
            place.block_bytes[:] = part.block_bytes
            start, done = 0, done + count
