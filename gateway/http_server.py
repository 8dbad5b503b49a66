"""uvicorn as a part: its socket, its TLS, its end. Event loop.

Certificates are read at start; a changed file counts after a restart.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from gateway.http_protocol import bounded_protocol
from kvtier.listening import AddressInUseError

__all__ = ["HttpServer", "bind"]

KEEP_ALIVE_SECONDS = 75
"""Longer than clients and proxies keep connections, so that it is they who close."""

BACKLOG = 2048


class _Server(uvicorn.Server):
    """Signals are the process's own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    def __init__(
        self, app: Any, listener: socket.socket, tls: ssl.SSLContext | None, body_bytes_max: int
    ) -> None:
        config = uvicorn.Config(
            app,
            http=bounded_protocol(body_bytes_max),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            # What still runs was waited for before; see `server.py`.
            timeout_graceful_shutdown=2,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serves when it returns."""
        self._task = asyncio.create_task(self._server.serve([self._listener]), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended by itself")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Closes what is open; requests that still run are cancelled after two seconds."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


def bind(address: str) -> tuple[socket.socket, str]:
    """A listening socket, and the address really bound. Raises AddressInUseError."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise AddressInUseError(
            f"cannot listen on {address}: {error.strerror}; choose another with"
            " --set listen=HOST:PORT",
            address=address,
        ) from error
    return listener, f"{host}:{listener.getsockname()[1]}"
