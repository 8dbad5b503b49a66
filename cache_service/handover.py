"""The service's half of the arena hand-over: a ticket for a file descriptor.

    accept -> read the ticket (bounded) -> one status byte, with the memfd if the ticket is good
           -> the session's calls (`session_line.py`) -> the connection closes, the session ends

The open connection is how a shared-memory session lives: when its process dies, however it dies,
the kernel closes the socket and the session's leases and reservations are taken back at once.

Invariant: the socket file belongs to a running service; a stale one is replaced, one that somebody
listens on never. Event loop only.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from cache_service.errors import SessionUnknownError
from cache_service.session_line import LineDoor, SessionLine
from cache_service.views import AttachedView
from kvtier.listening import AddressInUseError, clear_stale_socket

__all__ = ["ArenaHandover"]

log = logging.getLogger(__name__)

TICKET_BYTES = 32
TAKEN = b"\x00"
REFUSED = b"\x01"

TICKET_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 1024


class SessionDoor(Protocol):
    """What the hand-over asks of the cache."""

    def attach(self, ticket: bytes) -> AttachedView: ...

    def close_session(self, session_id: str) -> None: ...


class ArenaHandover:
    """Listens on a Unix socket and hands the arena's descriptor to ticket holders."""

    def __init__(self, path: Path, arena_fd: int, door: SessionDoor, calls: LineDoor) -> None:
        self._path = path
        self._arena_fd = arena_fd
        self._door = door
        self._calls = calls
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Binds and listens; clients get in once the loop runs. Raises AddressInUseError."""
        clear_stale_socket(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Owner only from the first moment: the mode is set before anybody can connect.
            listener.bind(str(self._path))
            os.chmod(self._path, stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise AddressInUseError(
                f"cannot listen on {self._path}: {error.strerror}", path=self._path
            ) from error
        listener.setblocking(False)
        self._listener = listener
        self._spawn(self._accept(listener))

    async def stop(self) -> None:
        """Closes every connection, which ends their sessions, and removes the socket file."""
        if self._listener is None:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, say: those that wait stay in the backlog until some are free.
                log.warning("cannot accept on the arena socket: %s", error)
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            if len(self._tasks) > CONNECTIONS_MAX:
                connection.close()
                continue
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            session = await self._hand_over(connection)
            if session is None:
                return
            line = SessionLine(session, self._calls)
            try:
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: line, connection)
                await line.ended
            finally:
                line.cut()
                self._door.close_session(session.session_id)

    async def _hand_over(self, connection: socket.socket) -> AttachedView | None:
        """The session of a good ticket, once its holder has the arena."""
        try:
            async with asyncio.timeout(TICKET_SECONDS_MAX):
                ticket = await _read_exactly(connection, TICKET_BYTES)
        except (OSError, TimeoutError, EOFError):
            return None
        try:
            session = self._door.attach(ticket)
        except SessionUnknownError:
            log.warning("the arena socket refused a ticket that no session waits for")
            with contextlib.suppress(OSError):
                connection.send(REFUSED)
            return None
        try:
            # One byte into an empty socket buffer: it does not block, or the peer is gone.
            socket.send_fds(connection, [TAKEN], [self._arena_fd])
        except OSError:
            self._door.close_session(session.session_id)
            return None
        return session

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _read_exactly(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < size:
        part = await loop.sock_recv(connection, size - len(received))
        if not part:
            raise EOFError
        received += part
    return received
