"""The bulk lane's port: accepts connections, and gives each a thread.

    accept thread -> Lane (a thread each, at most `connections_max`) -> ended, forgotten

A connection too many is told so and closed. Started and stopped on the event loop, which `stop`
keeps running until every thread gave back what it held. A lock guards the set of lanes.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time

from cache_service.bulk.lane import Lane, LoopDoor
from cache_service.bulk.transfers import Transfers
from cache_service.session_line import LineDoor
from kvtier.bulk import Frame, Kind, StopReason, pack
from kvtier.bulk_socket import STALL_SECONDS
from kvtier.listening import AddressInUseError

__all__ = ["BulkListener"]

log = logging.getLogger(__name__)

BACKLOG = 64
STOP_SECONDS_MAX = 5.0
OUT_OF_DESCRIPTORS_SECONDS = 0.1


class BulkListener:
    """Listens on `address`, "HOST:PORT"; with `tls`, mutually. `calls` answers those of lines."""

    def __init__(
        self,
        address: str,
        tls: ssl.SSLContext | None,
        transfers: Transfers,
        calls: LineDoor,
        connections_max: int,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._address = address
        self._tls = tls
        self._transfers = transfers
        self._calls = calls
        self._connections_max = connections_max
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._lanes: dict[Lane, threading.Thread] = {}
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._accepting: threading.Thread | None = None

    def start(self) -> str:
        """Binds and listens; the address really bound. Raises AddressInUseError."""
        host, _, port = self._address.rpartition(":")
        try:
            family, _, _, _, place = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.create_server(place[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            raise AddressInUseError(
                f"cannot listen on {self._address}: {error.strerror}; choose another with"
                " --set bulk.listen=HOST:PORT",
                address=self._address,
            ) from error
        door = LoopDoor(asyncio.get_running_loop())
        self._accepting = threading.Thread(
            target=self._accept, args=(self._socket, door), name="bulk-accept", daemon=True
        )
        self._accepting.start()
        return f"{host}:{self._socket.getsockname()[1]}"

    async def stop(self) -> None:
        """Cuts every connection; returns when their threads are done."""
        if self._socket is None or self._accepting is None:
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._accepting.join, STOP_SECONDS_MAX)
        self._socket.close()
        with self._lock:
            lanes = dict(self._lanes)
        for lane in lanes:
            lane.cut()
        until = time.monotonic() + STOP_SECONDS_MAX
        for thread in lanes.values():
            await asyncio.to_thread(thread.join, max(0.0, until - time.monotonic()))

    def _accept(self, listener: socket.socket, door: LoopDoor) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if not self._stopping.is_set():
                    # Out of descriptors, say: those that wait stay in the backlog until then.
                    log.warning("cannot accept on the bulk port: %s", error)
                    self._stopping.wait(OUT_OF_DESCRIPTORS_SECONDS)
                continue
            with self._lock:
                full = len(self._lanes) >= self._connections_max
            if full:
                self._refuse(connection)
                continue
            try:
                lane = Lane(
                    connection, self._tls, self._transfers, self._calls, door, self._stall_seconds
                )
            except OSError:
                connection.close()
                continue
            thread = threading.Thread(target=self._run, args=(lane,), name="bulk-lane", daemon=True)
            with self._lock:
                self._lanes[lane] = thread
            thread.start()

    def _run(self, lane: Lane) -> None:
        try:
            lane.run()
        finally:
            with self._lock:
                del self._lanes[lane]

    def _refuse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            if self._tls is None:
                connection.send(pack(Frame(Kind.STOP, 0, StopReason.TOO_MANY_LANES)))
