"""Transfers: what the threads of the bulk lane may touch, and for how long.

    connection -> enter (ticket) -> begin_load / begin_store -> its thread moves bytes -> end_...
                                                             -> leave

A thread asks for everything here, on the loop, and touches slabs only between a `begin` and its
`end`. Invariant: until the `end`, rows of a load are pinned and slabs of a store belong to their
reservation, whatever became of lease, reservation and session; a reservation has one writer.
Transfers of what ended are told so at the next tick, connections of sessions that ended are cut.
Event loop only, but for what a transfer says of its thread.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cache_service.bulk.tickets import Tickets
from cache_service.errors import (
    InvalidRangeError,
    InvalidTransportError,
    LeaseExpiredError,
    LeaseUnknownError,
    ReservationUnknownError,
    TicketRefusedError,
)
from cache_service.lease import Lease
from cache_service.parts import Parts
from cache_service.reservation import ENDED_MESSAGE, Reservation, ReservationState
from cache_service.side import Side
from cache_service.views import AttachedView, Transport
from kvtier.bulk import StopReason, stop_reason
from kvtier.keys import BlockHash

__all__ = ["BulkPlace", "LaneEntry", "LoadTransfer", "StoreTransfer", "Transfers"]

TAKE_OVER_SECONDS_MAX = 5.0
"""How long a STORE waits for an older one of its reservation to stop."""


@dataclass(frozen=True, slots=True)
class BulkPlace:
    """Where the lane listens."""

    host: str
    """Empty: where the control lane does."""
    port: int
    tls: bool

    @property
    def takes_calls(self) -> bool:
        """A connection may become a session's line: the loop reads what is in clear."""
        return not self.tls


@dataclass(eq=False, slots=True)
class LaneEntry:
    """A connection that showed a good ticket. `cut` ends its thread's waits."""

    session_id: str
    cut: Callable[[], None]


@dataclass(eq=False, slots=True)
class LoadTransfer:
    """Blocks to send. The views are good until `end_load`."""

    lane: LaneEntry
    lease: Lease
    rows: list[int]
    views: list[memoryview]
    ended: StopReason | None = None
    """Set when the lease ended: nothing more should be sent."""
    sent_bytes: int = 0
    """Written by the thread that sends."""


@dataclass(eq=False, slots=True)
class StoreTransfer:
    """Blocks to receive. The views are good until `end_store`."""

    reservation: Reservation
    lane: LaneEntry
    missing: list[int]
    """Positions in the chain, ascending."""
    hashes: list[BlockHash]
    views: list[memoryview]
    began: int
    """Leading ones that came in before."""
    standing: int
    """Leading ones that are in. Written by the thread that receives."""
    ended: StopReason | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Transfers(Side):
    """Tickets, connections and transfers of bulk sessions."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.place: BulkPlace | None = None
        """Set once, when a listener is there; until then no bulk session can be opened."""
        self._tickets = Tickets()
        self._lanes: set[LaneEntry] = set()
        self._loads: set[LoadTransfer] = set()
        self._stores: dict[str, StoreTransfer] = {}
        """Reservation -> what is written into its slabs."""

    @property
    def lane_count(self) -> int:
        return len(self._lanes)

    @property
    def transfer_count(self) -> int:
        return len(self._loads) + len(self._stores)

    # -- connections -------------------------------------------------------------------------------

    def ticket(self, session_id: str, principal_key: str) -> bytes:
        """Raises SessionUnknownError, InvalidTransportError, TooManyLanesError."""
        session = self._parts.lifetimes.session(session_id)
        if session.transport is not Transport.BULK:
            raise InvalidTransportError("this session's transport is not bulk; open one that is")
        return self._tickets.give(session_id, principal_key, self._parts.clock())

    def enter(self, ticket: bytes, principal_key: str | None, cut: Callable[[], None]) -> LaneEntry:
        """`leave` follows. Raises TicketRefusedError."""
        now = self._parts.lifetimes.expire()
        self._drop_dead_tickets()
        try:
            session_id = self._tickets.take(ticket, principal_key, now)
        except TicketRefusedError:
            self._parts.tally.bulk_refused()
            raise
        lane = LaneEntry(session_id, cut)
        self._lanes.add(lane)
        return lane

    def leave(self, lane: LaneEntry) -> None:
        """REQUIRES: no transfer of it runs."""
        self._lanes.discard(lane)
        self._tickets.leave(lane.session_id)

    def attached(self, lane: LaneEntry) -> AttachedView:
        """Whose calls the connection may carry. Raises SessionUnknownError."""
        session = self._parts.lifetimes.session(lane.session_id)
        return AttachedView(session.session_id, session.not_after)

    # -- transfers ---------------------------------------------------------------------------------

    def begin_load(self, lane: LaneEntry, lease_id: str, first: int, count: int) -> LoadTransfer:
        """`end_load` follows. Raises SessionUnknownError, LeaseUnknownError, LeaseExpiredError,
        InvalidRangeError.
        """
        parts = self._parts
        session = parts.lifetimes.session(lane.session_id)
        lease = parts.leases.find(session.session_id, lease_id)
        if count < 1 or first + count > lease.ready_count:
            raise InvalidRangeError(
                f"blocks {first} to {first + count} are not among the {lease.ready_count} readable"
                " ones",
                index=first,
            )
        rows = lease.rows[first : first + count]
        tree, size = parts.index.tree, session.block_bytes
        views = parts.arena.views(tree.slabs(rows), size)
        parts.index.pin_run(rows)
        transfer = LoadTransfer(lane, lease, rows, views)
        self._loads.add(transfer)
        return transfer

    def end_load(self, transfer: LoadTransfer) -> None:
        """The thread touches its views no more."""
        self._loads.discard(transfer)
        self._parts.tally.bulk_moved("sent", transfer.sent_bytes)
        transfer.views.clear()
        self._parts.index.unpin_run(transfer.rows)
        self._parts.room.changed()

    async def begin_store(self, lane: LaneEntry, reservation_id: str) -> StoreTransfer:
        """`end_store` follows. Ends an older store of the reservation first.

        Raises SessionUnknownError, ReservationUnknownError, ReservationExpiredError, TimeoutError.
        """
        reservation, block_bytes = self._find(lane, reservation_id)
        async with asyncio.timeout(TAKE_OVER_SECONDS_MAX):
            while (older := self._stores.get(reservation_id)) is not None:
                older.ended = StopReason.STALLED
                older.lane.cut()
                await older.done.wait()
                reservation, block_bytes = self._find(lane, reservation_id)
        self._parts.reservations.begin_writing(reservation)
        transfer = StoreTransfer(
            reservation,
            lane,
            list(reservation.missing),
            list(reservation.hashes),
            self._parts.arena.views(reservation.slabs, block_bytes),
            reservation.landed_count,
            reservation.landed_count,
        )
        self._stores[reservation_id] = transfer
        return transfer

    def end_store(self, transfer: StoreTransfer) -> StopReason | None:
        """The thread touches its views no more.

        Why what it received is of no use, when the reservation ended meanwhile.
        """
        del self._stores[transfer.reservation.reservation_id]
        received = transfer.views[transfer.began : transfer.standing]
        self._parts.tally.bulk_moved("received", sum(map(len, received)))
        transfer.views.clear()
        transfer.done.set()
        if self._parts.reservations.end_writing(transfer.reservation, transfer.standing):
            self._parts.room.changed()
        return self._why_reservation(transfer.reservation)

    # -- as a side ---------------------------------------------------------------------------------

    def tick(self) -> None:
        self._tickets.expire(self._parts.clock())
        self._drop_dead_tickets()
        for load in self._loads:
            if load.ended is not None:
                # It was told, and hangs over bytes that the client does not take.
                load.lane.cut()
            load.ended = self._why_lease(load.lease)
        for store in self._stores.values():
            store.ended = store.ended or self._why_reservation(store.reservation)
            if store.ended is not None:
                store.lane.cut()
        for lane in self._lanes:
            if not self._parts.sessions.alive(lane.session_id):
                lane.cut()

    def pins(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for load in self._loads:
            for row in load.rows:
                counts[row] = counts.get(row, 0) + 1
        return counts

    def check_integrity(self) -> None:
        self._tickets.check_integrity()
        for reservation_id, store in self._stores.items():
            assert store.reservation.written_within
            assert store.reservation.reservation_id == reservation_id
            assert store.lane in self._lanes

    # -- below -------------------------------------------------------------------------------------

    def _find(self, lane: LaneEntry, reservation_id: str) -> tuple[Reservation, int]:
        session = self._parts.lifetimes.session(lane.session_id)
        found = self._parts.reservations.find(session.session_id, reservation_id)
        if isinstance(found, int):
            raise ReservationUnknownError("the reservation is committed already")
        if not isinstance(found, Reservation):
            raise found(ENDED_MESSAGE, reservation_id=reservation_id)
        if found.state is not ReservationState.OPEN:
            raise ReservationUnknownError("the reservation is not open for receiving")
        return found, session.block_bytes

    def _why_lease(self, lease: Lease) -> StopReason | None:
        """Why it ended; None while it lives."""
        if self._parts.leases.live(lease):
            return None
        if not self._parts.sessions.alive(lease.session_id):
            return StopReason.SESSION_UNKNOWN
        try:
            self._parts.leases.find(lease.session_id, lease.lease_id)
        except (LeaseUnknownError, LeaseExpiredError) as error:
            return stop_reason(error.reason)
        raise AssertionError("the lease lives")

    def _why_reservation(self, reservation: Reservation) -> StopReason | None:
        """Why it ended; None while it is open."""
        if reservation.state is ReservationState.OPEN:
            return None
        session_id = reservation.session_id
        if not self._parts.sessions.alive(session_id):
            return StopReason.SESSION_UNKNOWN
        try:
            outcome = self._parts.reservations.find(session_id, reservation.reservation_id)
        except ReservationUnknownError as error:
            return stop_reason(error.reason)
        ended = outcome if isinstance(outcome, type) else ReservationUnknownError
        return stop_reason(ended.reason)

    def _drop_dead_tickets(self) -> None:
        for session_id in self._tickets.sessions():
            if not self._parts.sessions.alive(session_id):
                self._tickets.close_session(session_id)
