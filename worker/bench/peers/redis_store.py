"""Redis: `redis-server` without persistence, redis-py with hiredis. Transports "unix" and "tcp".

A restore copies what MGET returned into the pages, because redis-py has no way to read into them.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version

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

_BATCH_BYTES = 16 << 20
"""Asked for in one command: larger answers were slower."""


class RedisPeer:
    """See `Peer`."""

    def __init__(self, terms: Terms, stack: ExitStack) -> None:
        try:
            import redis
        except ImportError:
            raise Absent("not installed: pip install redis hiredis") from None
        server = shutil.which("redis-server")
        if server is None:
            raise Absent("redis-server is not installed: apt-get install redis-server")
        port, path = free_port(), terms.directory / "redis.sock"
        settings = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": path,
            "save": "",
            "appendonly": "no",
            "maxmemory": 0,
            "dir": terms.directory,
        }
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        start_server(terms, stack, [server, *flags])
        await_port(port)
        if terms.transport == "unix":
            self._client = redis.Redis(unix_socket_path=str(path))
        else:
            self._client = redis.Redis(host="127.0.0.1", port=port)
        stack.callback(self._client.close)
        self._size = terms.block_bytes * terms.block_count
        self._batch = max(1, _BATCH_BYTES // terms.block_bytes)
        self.version = f"redis {self._client.info()['redis_version']}, redis-py {version('redis')}"

    def pages(self) -> Page:
        return np.ones(self._size, np.uint8)

    def store(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        for first in range(0, len(keys), self._batch):
            batch = slice(first, first + self._batch)
            views = (page.data for page in pages[batch])
            self._client.mset(dict(zip(keys[batch], views, strict=True)))

    def restore(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        for first in range(0, len(keys), self._batch):
            values = self._client.mget(keys[first : first + self._batch])
            for page, value in zip(pages[first:], values, strict=False):
                np.copyto(page, np.frombuffer(value, np.uint8))

    def forget(self, keys: Sequence[str]) -> None:
        self._client.delete(*keys)


if __name__ == "__main__":
    serve(RedisPeer)
