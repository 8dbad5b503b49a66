"""LeaseTable: who reads what, until when. Pins on blocks for reading derive from here alone.

A lease is active until it is released or its deadline passes; it never comes back. It names a run
of a chain's leading blocks: all of them are pinned, the first `ready_count` are readable.

Invariant: a block is pinned once for every live lease that names it. Written by the cache on the
event loop; lost in a crash on purpose.
"""

import secrets
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from cache_service.deadlines import Deadlines
from cache_service.errors import (
    InvalidRangeError,
    LeaseExpiredError,
    LeaseUnknownError,
    TooManyLeasesError,
)
from cache_service.index import BlockIndex
from cache_service.remembered import Remembered

__all__ = ["Lease", "LeaseHow", "LeaseTable"]


class LeaseHow(Enum):
    """What ended a lease."""

    RELEASED = "released"
    NOTHING_READY = "nothing_ready"
    ABANDONED = "abandoned"
    EXPIRED = "expired"
    SESSION_CLOSED = "session_closed"
    SESSION_EXPIRED = "session_expired"


class LeaseWitness(Protocol):
    """Is told how each lease ended, while its blocks are pinned still; must return at once."""

    def ended(self, lease: "Lease", how: LeaseHow) -> None: ...


class Lease:
    """A live lease. Changed by the table only."""

    __slots__ = ("corrupt_count", "lease_id", "ready_count", "rows", "session_id")

    def __init__(self, lease_id: str, session_id: str, rows: Sequence[int]) -> None:
        self.lease_id = lease_id
        self.session_id = session_id
        self.rows = list(rows)
        """Of the leased blocks, in chain order; pinned."""
        self.ready_count = 0
        self.corrupt_count = 0
        """Readable blocks that its client said were corrupt."""


class LeaseTable:
    """Live leases by id and by session."""

    def __init__(self, index: BlockIndex, per_session_max: int, memory_count: int) -> None:
        self._index = index
        self._per_session_max = per_session_max
        self._leases: dict[str, Lease] = {}
        self._by_session: dict[str, set[str]] = {}
        self._deadlines = Deadlines()
        self.witness: LeaseWitness | None = None
        """Set once, before there are leases."""
        self._expired: Remembered[str] = Remembered(memory_count)
        """Expired lease -> its session, to tell expired from unknown."""

    def __len__(self) -> int:
        return len(self._leases)

    def open(self, session_id: str, rows: Sequence[int], deadline: float) -> Lease:
        """Pins blocks and leases them. Raises TooManyLeasesError."""
        held = self._by_session.setdefault(session_id, set())
        if len(held) >= self._per_session_max:
            raise TooManyLeasesError(
                f"this session holds {len(held)} leases; release some first", lease_count=len(held)
            )
        lease = Lease(secrets.token_hex(16), session_id, rows)
        self._index.pin_run(lease.rows)
        self._leases[lease.lease_id] = lease
        held.add(lease.lease_id)
        self._deadlines.set(lease.lease_id, deadline)
        return lease

    @property
    def all(self) -> Mapping[str, Lease]:
        """Live ones, by id."""
        return self._leases

    def live(self, lease: Lease) -> bool:
        return lease.lease_id in self._leases

    def find(self, session_id: str, lease_id: str) -> Lease:
        """Raises LeaseUnknownError, LeaseExpiredError."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.session_id == session_id:
            return lease
        if self._expired.get(lease_id) == session_id:
            raise LeaseExpiredError("the lease ended; acquire the prefix again", lease_id=lease_id)
        raise LeaseUnknownError("this session has no such lease", lease_id=lease_id)

    def row(self, session_id: str, lease_id: str, index: int) -> int:
        """The row of a readable block of a lease. Raises as `find`, and InvalidRangeError."""
        lease = self.find(session_id, lease_id)
        if not 0 <= index < lease.ready_count:
            raise InvalidRangeError(
                f"block {index} is not among the {lease.ready_count} readable ones", index=index
            )
        return lease.rows[index]

    def make_ready(self, lease: Lease, ready_count: int) -> None:
        lease.ready_count = ready_count

    def extend(self, lease: Lease, rows: Sequence[int]) -> None:
        """The lease names these blocks too, which continue it. REQUIRES: it is live."""
        self._index.pin_run(rows)
        lease.rows += rows

    def trim(self, lease: Lease) -> None:
        """Lets go of the blocks that did not become readable."""
        self._index.unpin_run(lease.rows[lease.ready_count :])
        del lease.rows[lease.ready_count :]

    def renew(self, session_id: str, lease_id: str, deadline: float) -> bool:
        """False when there is no such live lease in the session."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.session_id != session_id:
            return False
        self._deadlines.set(lease_id, deadline)
        return True

    def release(self, session_id: str, lease_id: str, how: LeaseHow = LeaseHow.RELEASED) -> None:
        """Ends a lease. Idempotent."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.session_id == session_id:
            self._end(lease, how)

    def release_session(self, session_id: str, how: LeaseHow = LeaseHow.SESSION_CLOSED) -> None:
        for lease_id in list(self._by_session.get(session_id, ())):
            self._end(self._leases[lease_id], how)

    def expire(self, now: float) -> int:
        """Ends every lease whose deadline passed; returns how many."""
        due = self._deadlines.due(now)
        for lease_id in due:
            lease = self._leases[lease_id]
            self._expired.put(lease_id, lease.session_id)
            self._end(lease, LeaseHow.EXPIRED)
        return len(due)

    def note_corrupt(self, lease: Lease, count: int) -> None:
        lease.corrupt_count += count

    def _end(self, lease: Lease, how: LeaseHow) -> None:
        if self.witness is not None:
            self.witness.ended(lease, how)
        del self._leases[lease.lease_id]
        self._deadlines.remove(lease.lease_id)
        held = self._by_session[lease.session_id]
        held.discard(lease.lease_id)
        if not held:
            del self._by_session[lease.session_id]
        self._index.unpin_run(lease.rows)

    def pins(self) -> dict[int, int]:
        """How often each block is leased, for integrity checks."""
        counts: dict[int, int] = {}
        for lease in self._leases.values():
            for row in lease.rows:
                counts[row] = counts.get(row, 0) + 1
        return counts

    def check_integrity(self) -> None:
        assert len(self._deadlines) == len(self._leases)
        listed = {lease_id for ids in self._by_session.values() for lease_id in ids}
        assert listed == set(self._leases)
        for session_id, ids in self._by_session.items():
            assert len(ids) <= self._per_session_max
            assert all(self._leases[i].session_id == session_id for i in ids)
        for lease in self._leases.values():
            assert lease.ready_count <= len(lease.rows)
            assert all(self._index.tree.pins(row) > 0 for row in lease.rows)
            assert all(self._index.tree.in_host(row) for row in lease.rows[: lease.ready_count])
