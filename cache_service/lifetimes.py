"""Lifetimes: whoever asks for a session or the time gets it after everything overdue was ended.

Invariant: no caller sees a session, lease or reservation past its deadline. With a session end its
leases and reservations; what it may still be writing rests for the grace time. Event loop only.
"""

from collections.abc import Callable

from cache_service.errors import ReservationUnknownError
from cache_service.lease import LeaseHow, LeaseTable
from cache_service.reservation import ReservationState, ReservationTable
from cache_service.room import HostRoom
from cache_service.session import Session, SessionTable
from cache_service.tally import Tally

__all__ = ["Lifetimes"]


class Lifetimes:
    """Ends sessions and what they hold. `clock` in seconds, monotonic."""

    def __init__(
        self,
        sessions: SessionTable,
        leases: LeaseTable,
        reservations: ReservationTable,
        room: HostRoom,
        tally: Tally,
        clock: Callable[[], float],
        grace_seconds: float,
    ) -> None:
        self._sessions = sessions
        self._leases = leases
        self._reservations = reservations
        self._room = room
        self._tally = tally
        self._clock = clock
        self._grace_seconds = grace_seconds

    def session(self, session_id: str) -> Session:
        """An open session, which lives on for it. Raises SessionUnknownError."""
        return self._sessions.find(session_id, self.expire())

    def expire(self) -> float:
        """Ends everything whose deadline passed; returns the time it went by."""
        now = self._clock()
        for session_id in self._sessions.due(now):
            self._end(session_id, now, expired=True)
        leases = self._leases.expire(now)
        if leases:
            self._tally.leases_expired(leases)
        reservations = self._reservations.expire(now, self._grace_seconds)
        if reservations:
            self._tally.reservations_expired(reservations)
        if leases or self._reservations.free_rested(now):
            self._room.changed()
        return now

    def close(self, session_id: str) -> None:
        """Ends a session and what it holds. Idempotent."""
        self._end(session_id, self.expire(), expired=False)

    def _end(self, session_id: str, now: float, *, expired: bool) -> None:
        if self._sessions.close(session_id) is None:
            return
        how = LeaseHow.SESSION_EXPIRED if expired else LeaseHow.SESSION_CLOSED
        self._leases.release_session(session_id, how)
        rest_until = now + self._grace_seconds
        for reservation in self._reservations.of_session(session_id):
            # A commit under way runs to its end: its blocks are whole, others may use them.
            if reservation.state is not ReservationState.COMMITTING:
                self._reservations.end(reservation, ReservationUnknownError, rest_until)
        self._room.changed()
        self._tally.session_closed(session_id, expired)
