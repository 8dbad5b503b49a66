"""The limit over a wire: a bare TCP connection over loopback, one sender, one receiver.

    parent: S -> blocks ... -> one byte back        store
    parent: L -> ... blocks                         restore
    parent: O index -> one block                    one-block restore

The other end is a process of its own (`python -m worker.bench.raw_socket PORT BLOCK COUNT`, and
with TLS the files of its ClientTls) which keeps what it is sent and sends it back. `sendall` and
`recv_into` on plain sockets, or on Python's own TLS sockets, no checksum. One thread in each
process; every wait has a bound.
"""

import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from kvtier.bench.errors import BenchError
from kvtier.tls import ClientTls, client_context, server_context
from worker.bench.memory import PathMemory
from worker.bench.tls import BenchTls
from worker.bench.turns import Turn, seconds
from worker.landing import PageBytes

__all__ = ["RawSocket", "raw_socket"]

_COMMAND = struct.Struct("<cI")
_WAIT_SECONDS_MAX = 60.0


class RawSocket:
    """The parent's end."""

    def __init__(self, memory: PathMemory, connection: socket.socket, single_blocks: int) -> None:
        self._memory = memory
        self._connection = connection
        self._single_blocks = single_blocks

    def turn(self, number: int) -> Turn:
        """As `Contender.turn`. Raises OSError, BenchError."""
        store_seconds = seconds(self._store)
        self._memory.forget()
        restore_seconds = seconds(self._restore)
        self._memory.verify("the raw socket")
        singles = tuple(
            seconds(lambda at=(number + i * 7) % self._memory.count: self._restore_one(at))  # type: ignore[misc]
            for i in range(self._single_blocks)
        )
        return Turn(store_seconds, restore_seconds, singles, {})

    def _store(self) -> None:
        self._connection.sendall(_COMMAND.pack(b"S", 0))
        for block in self._memory.sources:
            self._connection.sendall(block.data)
        if not self._connection.recv(1):
            raise BenchError("the raw socket's other end is gone")

    def _restore(self) -> None:
        self._connection.sendall(_COMMAND.pack(b"L", 0))
        for block in self._memory.targets:
            _receive(self._connection, block)

    def _restore_one(self, index: int) -> None:
        self._connection.sendall(_COMMAND.pack(b"O", index))
        _receive(self._connection, self._memory.targets[index])


@contextmanager
def raw_socket(
    memory: PathMemory, single_blocks: int, tls: BenchTls | None = None
) -> Iterator[RawSocket]:
    """Both ends, connected. Raises OSError."""
    context = None if tls is None else server_context(tls.server)
    files = (
        []
        if tls is None
        else [tls.client.ca_file, tls.client.certificate_file, tls.client.key_file]
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_WAIT_SECONDS_MAX)
        sizes = listener.getsockname()[1], memory.block_bytes, memory.count
        command = [sys.executable, "-m", "worker.bench.raw_socket", *map(str, (*sizes, *files))]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            _prepare(connection)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                yield RawSocket(memory, connection, single_blocks)
        finally:
            process.terminate()
            process.wait()


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(_WAIT_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(connection: socket.socket, block: PageBytes) -> None:
    view, got = block.data, 0
    while got < len(view):
        size = connection.recv_into(view[got:])
        if not size:
            raise EOFError("the raw socket's other end is gone")
        got += size


def _serve(connection: socket.socket, blocks: PageBytes) -> None:
    """The other end's loop, until the connection closes."""
    head = np.zeros(_COMMAND.size, np.uint8)
    while True:
        _receive(connection, head)
        command, index = _COMMAND.unpack(head.tobytes())
        if command == b"S":
            for block in blocks:
                _receive(connection, block)
            connection.sendall(b"!")
        else:
            for block in blocks if command == b"L" else blocks[index : index + 1]:
                connection.sendall(block.data)


def main() -> None:
    """Entry of the other end."""
    port, block_bytes, count = map(int, sys.argv[1:4])
    context = _tls(*map(Path, sys.argv[4:])) if len(sys.argv) > 4 else None
    blocks = np.ones((count, block_bytes), np.uint8)
    with suppress(EOFError, ConnectionError):
        connection = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS_MAX)
        _prepare(connection)
        if context is not None:
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        with connection:
            # Another contender's turn may take long; a parent that is gone closes the connection.
            connection.settimeout(None)
            _serve(connection, blocks)


def _tls(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext | None:
    return client_context(ClientTls(ca_file=ca, certificate_file=certificate, key_file=key))


if __name__ == "__main__":
    main()
