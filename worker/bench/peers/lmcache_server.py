"""LMCache's TCP server (`lmcache.v1.server`), spoken to in its own messages. Transport "tcp".

Its connector is part of an engine; this sends the same messages and reads into pages with
`recv_into`, as the connector does. A store ends when the server, which answers no PUT, has answered
a health check behind them. The server forgets nothing, so two prefixes' names are used by turns.
"""

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import numpy as np

from worker.bench.peers.driver import (
    Absent,
    Page,
    Terms,
    await_port,
    free_port,
    serve,
    start_server,
)

_HOST = "127.0.0.1"
_WAIT_SECONDS_MAX = 60.0


class LmcachePeer:
    """See `Peer`."""

    def __init__(self, terms: Terms, stack: ExitStack) -> None:
        try:
            import torch
            from lmcache.utils import CacheEngineKey
            from lmcache.v1 import protocol
            from lmcache.v1.memory_management import MemoryFormat
        except ImportError as error:
            raise Absent(f"not installed (pip install lmcache, and torch): {error}") from None
        self._protocol: Any = protocol
        self._key: Any = CacheEngineKey
        self._format: Any = MemoryFormat.BINARY
        self._torch: Any = torch
        self._terms = terms
        self.version = f"lmcache {version('lmcache')}"
        port = free_port()
        command = [sys.executable, "-m", "lmcache.v1.server", _HOST, str(port), "cpu"]
        start_server(terms, stack, command)
        await_port(port)
        address = _HOST, port
        self._socket = stack.enter_context(socket.create_connection(address, _WAIT_SECONDS_MAX))

    def pages(self) -> Page:
        return np.ones(self._terms.block_bytes * self._terms.block_count, np.uint8)

    def store(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        for key, page in zip(keys, pages, strict=True):
            self._say(self._protocol.ClientCommand.PUT, key, len(page))
            self._socket.sendall(page.data)
        self._say(self._protocol.ClientCommand.HEALTH, keys[0], 0)
        self._heard()

    def restore(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        for key, page in zip(keys, pages, strict=True):
            self._say(self._protocol.ClientCommand.GET, key, 0)
            if self._heard() != len(page):
                raise SystemExit("a restore brought another length")
            self._receive(page.data)

    def forget(self, keys: Sequence[str]) -> None:
        """Nothing: the names come back, and with them their memory."""

    def _say(self, command: Any, key: str, length: int) -> None:
        number, _, index = key.partition("-")
        name = int(number) % 2 << 32 | int(index)
        torch = self._torch
        message = self._protocol.ClientMetaMessage(
            command,
            self._key("bench", 1, 0, name, torch.bfloat16),
            length,
            self._format,
            torch.uint8,
            torch.Size([length, 0, 0, 0]),
        )
        self._socket.sendall(message.serialize())

    def _heard(self) -> int:
        """Length of what follows. Raises SystemExit for a refusal."""
        head = bytearray(self._protocol.ServerMetaMessage.packlength())
        self._receive(memoryview(head))
        answer = self._protocol.ServerMetaMessage.deserialize(bytes(head))
        if answer.code != self._protocol.ServerReturnCode.SUCCESS:
            raise SystemExit("the server has not got a block it was given")
        return int(answer.length)

    def _receive(self, view: memoryview) -> None:
        got = 0
        while got < len(view):
            size = self._socket.recv_into(view[got:])
            if not size:
                raise SystemExit("the server closed the connection")
            got += size


if __name__ == "__main__":
    serve(LmcachePeer)
