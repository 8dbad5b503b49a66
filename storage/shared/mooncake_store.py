"""Mooncake Store as an engine: the pooled memory (and SSDs) of many hosts, over TCP or RDMA.

    mooncake://MASTER:PORT

The client is a library of C++ within this process, connected at the first call and again after a
failure, so that a service starts whatever its master does. Its calls block, without the interpreter
lock, and end by the library's own time limits, 30 s for a master that is silent: they run on a few
threads of their own, and whoever waits for one has a deadline. While all threads wait for a silent
master nothing more is begun.

Invariant: a call that was given up writes only what it owns: objects are copied out of the
library's memory on its thread, and what is written is kept by the call.
"""

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.errors import ObjectTooLargeError, SharedStoreError, TierIOError

__all__ = ["MooncakeOptions", "MooncakeStore", "open_mooncake_store"]

T = TypeVar("T")

NAMES_AT_ONCE = 1024
"""In one request."""

THREADS = 4

BUFFER_BYTES = 128 * 1024 * 1024
"""Of the library, for what is on its way: an extent for each thread, and room to spare."""

_NOT_FOUND = -704
"""OBJECT_NOT_FOUND of the library."""


@dataclass(frozen=True, slots=True)
class MooncakeOptions:
    """What this host is in the pool."""

    pool_bytes: int = 0
    """Memory that it gives to all; 0: it only uses others'."""
    protocol: str = "tcp"
    """"tcp" or "rdma"."""
    host: str = ""
    """Its name or address as the others reach it; empty: its host name."""


def open_mooncake_store(url: str, options: MooncakeOptions) -> "MooncakeStore":
    """Nothing is connected yet. Raises SharedStoreError."""
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError as error:
        raise SharedStoreError(
            f"shared.url names Mooncake, and its package cannot be used ({error}): pip install"
            " 'kvtier[mooncake]'",
            url=url,
        ) from None
    parts = urlsplit(url)
    if not parts.hostname or not parts.port or parts.path.strip("/"):
        raise SharedStoreError("Mooncake's master is named as mooncake://HOST:PORT", url=url)
    return MooncakeStore(MooncakeDistributedStore, f"{parts.hostname}:{parts.port}", options)


class MooncakeStore:
    """`storage.shared.objects.ObjectStore` over the library's client."""

    label = "mooncake"
    names_at_once = NAMES_AT_ONCE

    def __init__(self, client: Callable[[], Any], master: str, options: MooncakeOptions) -> None:
        """`client`: makes one that is not set up."""
        self._make = client
        self._master = master
        self._options = options
        self._client: Any = None
        self._connecting = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mooncake")

    async def exists(self, names: Sequence[str]) -> list[bool]:
        found = await self._call("search", lambda client: client.batch_is_exist(list(names)))
        if len(found) != len(names) or any(each not in (0, 1) for each in found):
            raise _failed("search", min(found, default=0))
        return [each == 1 for each in found]

    async def read(self, name: str, bytes_max: int) -> memoryview | None:
        return await self._call("read", lambda client: _read(client, name, bytes_max))

    async def write(self, name: str, content: memoryview) -> None:
        code = await self._call("write", lambda client: client.put(name, content))
        if code:
            raise _failed("write", code)

    async def delete(self, names: Sequence[str]) -> None:
        # By force: the library protects for seconds what was read a moment ago.
        codes = await self._call("delete", lambda client: client.batch_remove(list(names), True))
        bad = [code for code in codes if code not in (0, _NOT_FOUND)]
        if bad:
            raise _failed("delete", bad[0])

    async def delete_below(self, prefix: str) -> int:
        pattern = f"^{re.escape(prefix)}"
        count: int = await self._call(
            "delete", lambda client: client.remove_by_regex(pattern, True)
        )
        if count < 0:
            raise _failed("delete", count)
        return count

    async def close(self) -> None:
        """Gives this host's memory back. A call that hangs is left to end by itself."""
        client, self._client = self._client, None
        self._threads.shutdown(wait=False, cancel_futures=True)
        if client is not None:
            await asyncio.to_thread(client.close)

    # -- below -------------------------------------------------------------------------------------

    async def _call(self, operation: str, call: Callable[[Any], T]) -> T:
        def run() -> T:
            return call(self._connected())

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except (TierIOError, ObjectTooLargeError):
            raise
        except Exception as error:
            raise TierIOError(
                f"the shared tier refused a {operation}: {type(error).__name__}: {error}",
                operation=operation,
                cause="error",
            ) from None

    def _connected(self) -> Any:
        """The client; any of the threads. Raises TierIOError."""
        if self._client is not None:
            return self._client
        if not self._connecting.acquire(blocking=False):
            raise TierIOError("the shared tier is being connected", operation="connect")
        try:
            if self._client is None:
                client, options = self._make(), self._options
                host = options.host or socket.gethostname()
                buffers = options.pool_bytes, BUFFER_BYTES
                code = client.setup(
                    host, "P2PHANDSHAKE", *buffers, options.protocol, "", self._master
                )
                if code:
                    raise _failed("connect", code)
                self._client = client
            return self._client
        finally:
            self._connecting.release()


def _read(client: Any, name: str, bytes_max: int) -> memoryview | None:
    size = client.get_size(name)
    if size > bytes_max:
        raise ObjectTooLargeError(
            f"the object has {size} bytes, at most {bytes_max} are read", size_bytes=size
        )
    handle = None if size < 0 else client.get_buffer(name)
    if handle is not None:
        return memoryview(bytes(memoryview(handle)))
    # None is also what every failure is.
    code = size if size < 0 else client.get_size(name)
    if code == _NOT_FOUND:
        return None
    raise _failed("read", code if code < 0 else 0)


def _failed(operation: str, code: int) -> TierIOError:
    return TierIOError(
        f"the shared tier refused a {operation}: Mooncake says {code}",
        operation=operation,
        cause="error",
    )
