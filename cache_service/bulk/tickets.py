"""Tickets: who may open a connection of the bulk lane. Random, one use, short-lived.

A ticket belongs to a session and to the principal that asked for it. Invariant: a session has no
more tickets and connections together than `PER_SESSION_MAX`. Event loop only.
"""

import secrets
from dataclasses import dataclass

from cache_service.errors import TicketRefusedError, TooManyLanesError
from kvtier.bulk import TICKET_BYTES

__all__ = ["PER_SESSION_MAX", "TICKET_SECONDS", "Tickets"]

PER_SESSION_MAX = 8
TICKET_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    session_id: str
    principal_key: str
    until: float


class Tickets:
    """Tickets given out and not used yet, and how many connections came of the others."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, _Waiting] = {}
        """In the order they were given out, so also of when they end."""
        self._counts: dict[str, int] = {}
        """Session -> its tickets and connections."""

    def __len__(self) -> int:
        return len(self._waiting)

    def give(self, session_id: str, principal_key: str, now: float) -> bytes:
        """Raises TooManyLanesError."""
        self.expire(now)
        count = self._counts.get(session_id, 0)
        if count >= PER_SESSION_MAX:
            raise TooManyLanesError(
                f"this session has {count} bulk connections or tickets for them; close some",
                lane_count=count,
            )
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._waiting[ticket] = _Waiting(session_id, principal_key, now + TICKET_SECONDS)
        self._counts[session_id] = count + 1
        return ticket

    def take(self, ticket: bytes, principal_key: str | None, now: float) -> str:
        """The session of a ticket, which is used up whatever comes of it; `leave` ends its place.

        `principal_key`: whom the connection proved; None where it proves nobody, in clear. Raises
        TicketRefusedError, which does not say why.
        """
        self.expire(now)
        found = self._waiting.pop(ticket, None)
        if found is not None and principal_key in (None, found.principal_key):
            return found.session_id
        if found is not None:
            self.leave(found.session_id)
        raise TicketRefusedError("no session waits for this ticket; ask for another")

    def leave(self, session_id: str) -> None:
        """A connection ended. REQUIRES: a `take` that returned it."""
        self._counts[session_id] -= 1
        if not self._counts[session_id]:
            del self._counts[session_id]

    def expire(self, now: float) -> None:
        while self._waiting:
            ticket, oldest = next(iter(self._waiting.items()))
            if oldest.until > now:
                return
            self._drop(ticket)

    def close_session(self, session_id: str) -> None:
        """No ticket of it works any more."""
        for ticket in [t for t, w in self._waiting.items() if w.session_id == session_id]:
            self._drop(ticket)

    def sessions(self) -> set[str]:
        """Whose tickets wait."""
        return {waiting.session_id for waiting in self._waiting.values()}

    def check_integrity(self) -> None:
        ends = [waiting.until for waiting in self._waiting.values()]
        assert ends == sorted(ends)
        assert all(0 < count <= PER_SESSION_MAX for count in self._counts.values())
        assert len(ends) <= sum(self._counts.values())

    def _drop(self, ticket: bytes) -> None:
        self.leave(self._waiting.pop(ticket).session_id)
