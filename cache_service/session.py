"""SessionTable: which clients are here, for which namespace and block size, until when.

A session lives while calls name it; `session_ttl_seconds` after the last one it ends. What it holds
(leases, reservations) is theirs to free: the table only says that it ended.

Invariant: sessions of one namespace agree on the block size. Event loop only.
"""

import math
import secrets
from dataclasses import dataclass

from cache_service.deadlines import Deadlines
from cache_service.errors import (
    InvalidBlockSizeError,
    InvalidNamespaceError,
    SessionUnknownError,
    TooManySessionsError,
)
from cache_service.remembered import Remembered
from cache_service.views import Transport
from kvtier.keys import HASH_BYTES, NamespaceId

__all__ = ["UNKNOWN_SESSION", "Session", "SessionTable"]

TICKET_BYTES = 32
NUMBERS_MIN = 4096
"""Sessions, open or ended, whose blocks can be told."""

UNKNOWN_SESSION = "the session was never opened, was closed or has expired; open a new one"


@dataclass(frozen=True, slots=True)
class Session:
    session_id: str
    ticket: bytes
    namespace_id: NamespaceId
    block_bytes: int
    block_tokens: int
    client_name: str
    transport: Transport
    owner: str
    """Who opened it, as the gate knows it; nobody else may name it."""
    not_after: float = math.inf
    """Unix second at which the opener's certificate ends."""
    number: int = 0
    """Counted from 1 since the start; blocks that it stores have it."""


class SessionTable:
    """Open sessions by id, and the tickets not yet presented."""

    def __init__(self, count_max: int, ttl_seconds: float) -> None:
        self._count_max = count_max
        self._ttl_seconds = ttl_seconds
        self._sessions: dict[str, Session] = {}
        self._tickets: dict[bytes, str] = {}
        self._deadlines = Deadlines()
        self._opened_count = 0
        self._numbers: Remembered[int] = Remembered(max(NUMBERS_MIN, count_max))

    def __len__(self) -> int:
        return len(self._sessions)

    def open(
        self,
        namespace_id: NamespaceId,
        block_bytes: int,
        block_tokens: int,
        client_name: str,
        transport: Transport,
        now: float,
        owner: str = "",
        not_after: float = math.inf,
    ) -> Session:
        """Raises InvalidNamespaceError, InvalidBlockSizeError, TooManySessionsError."""
        if len(namespace_id) != HASH_BYTES:
            raise InvalidNamespaceError(f"a namespace id has {HASH_BYTES} bytes")
        if block_bytes <= 0 or block_tokens <= 0:
            raise InvalidBlockSizeError("block bytes and block tokens must be positive")
        for other in self._sessions.values():
            if other.namespace_id == namespace_id and other.block_bytes != block_bytes:
                raise wrong_block_size(block_bytes, other.block_bytes)
        if len(self._sessions) >= self._count_max:
            raise TooManySessionsError(
                f"{len(self._sessions)} sessions are open; close some or raise the limit"
            )
        session = Session(
            secrets.token_hex(16),
            secrets.token_bytes(TICKET_BYTES),
            namespace_id,
            block_bytes,
            block_tokens,
            client_name,
            transport,
            owner,
            not_after,
            self._opened_count + 1,
        )
        self._opened_count += 1
        self._numbers.put(session.session_id, session.number)
        self._sessions[session.session_id] = session
        self._tickets[session.ticket] = session.session_id
        self._deadlines.set(session.session_id, now + self._ttl_seconds)
        return session

    def find(self, session_id: str, now: float) -> Session:
        """The session, which this call keeps alive. Raises SessionUnknownError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionUnknownError(UNKNOWN_SESSION)
        self._deadlines.set(session_id, now + self._ttl_seconds)
        return session

    def owner(self, session_id: str) -> str | None:
        """Who opened it; None when there is no such session. Keeps nothing alive."""
        session = self._sessions.get(session_id)
        return None if session is None else session.owner

    def number(self, session_id: str) -> int | None:
        """Of a session that is open, or was; None when it is not remembered."""
        return self._numbers.get(session_id)

    def transport(self, session_id: str) -> Transport | None:
        """None when there is no such session. Keeps nothing alive."""
        session = self._sessions.get(session_id)
        return None if session is None else session.transport

    def alive(self, session_id: str) -> bool:
        return session_id in self._sessions

    def present(self, ticket: bytes) -> Session:
        """The session of a ticket, which is used up. Raises SessionUnknownError."""
        session_id = self._tickets.pop(ticket, None)
        if session_id is None:
            raise SessionUnknownError("no session waits for this ticket")
        return self._sessions[session_id]

    def close(self, session_id: str) -> Session | None:
        """Ends a session; None when it had ended."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._tickets.pop(session.ticket, None)
            self._deadlines.remove(session_id)
        return session

    def due(self, now: float) -> list[str]:
        """Sessions that no call named in time; still to be closed."""
        return self._deadlines.due(now)

    def check_integrity(self) -> None:
        assert len(self._deadlines) == len(self._sessions) <= self._count_max
        for ticket, session_id in self._tickets.items():
            assert self._sessions[session_id].ticket == ticket


def wrong_block_size(asked_bytes: int, known_bytes: int) -> InvalidBlockSizeError:
    return InvalidBlockSizeError(
        f"blocks of this namespace have {known_bytes} bytes, not {asked_bytes}",
        block_bytes=asked_bytes,
        namespace_block_bytes=known_bytes,
    )
