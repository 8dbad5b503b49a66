"""Mooncake Store on this machine. Transports "shm" and "tcp".

    shm: driver (dummy client) -> shared memory -> mooncake_client, which owns the segment
    tcp: driver (real client without a segment) -> TCP over loopback -> mooncake_client

Pages are memory registered with it, so it copies each byte once (shm) or sends it from where it is
(tcp): its best case, a worker whose pages were made by it.
"""

import ctypes
import importlib.util
import os
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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

_MIB = 1 << 20
_ROOM_MIB = 256
_PREFIXES = 3
_PACKAGES = "mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine"
_HOST = "127.0.0.1"


class MooncakePeer:
    """See `Peer`."""

    def __init__(self, terms: Terms, stack: ExitStack) -> None:
        folder = _folder()
        from mooncake.store import MooncakeDistributedStore

        self.version = _version()
        self._size = terms.block_bytes * terms.block_count
        self._terms = terms
        self._memory: list[Page] = []
        master, metadata, client, metrics = (free_port() for _ in range(4))
        metadata_url = f"http://{_HOST}:{metadata}/metadata"
        start_server(
            terms,
            stack,
            [
                _program(folder, "mooncake_master"),
                f"-rpc_address={_HOST}",
                f"-rpc_port={master}",
                f"-metrics_host={_HOST}",
                f"-metrics_port={metrics}",
                "-enable_http_metadata_server=true",
                f"-http_metadata_server_host={_HOST}",
                f"-http_metadata_server_port={metadata}",
            ],
        )
        await_port(master)
        await_port(metadata)
        segment_mib = _PREFIXES * -(-self._size // _MIB) + _ROOM_MIB
        start_server(
            terms,
            stack,
            [
                _program(folder, "mooncake_client"),
                f"-host={_HOST}",
                f"-port={client}",
                f"-master_server_address={_HOST}:{master}",
                f"-metadata_server={metadata_url}",
                "-protocol=tcp",
                f"-global_segment_size={segment_mib}MB",
            ],
        )
        await_port(client)
        self._store = MooncakeDistributedStore()
        stack.callback(self._store.close)
        if terms.transport == "shm":
            pool = 2 * self._size + 2 * _ROOM_MIB * _MIB
            status = self._store.setup_dummy(pool, 0, f"{_HOST}:{client}")
        else:
            status = self._store.setup(
                _HOST, metadata_url, 0, 16 * _MIB, "tcp", "", f"{_HOST}:{master}"
            )
        if status:
            raise Absent(f"its client does not set up: error {status}")
        self._await_segment()

    def _await_segment(self) -> None:
        page = self._registered(_MIB)
        deadline = time.monotonic() + 30.0
        while self._store.put_from("ready", page.ctypes.data, _MIB):
            if time.monotonic() > deadline:
                raise Absent("its segment is not there after 30 s")
            time.sleep(0.2)

    def pages(self) -> Page:
        return self._registered(self._size)

    def _registered(self, size: int) -> Page:
        if self._terms.transport == "shm":
            address = self._store.alloc_from_mem_pool(size)
            page = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        else:
            page = np.ones(size, np.uint8)
            address = page.ctypes.data
        if self._store.register_buffer(address, size):
            raise Absent("it does not register memory")
        self._memory.append(page)
        return page

    def store(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        sizes = [self._terms.block_bytes] * len(keys)
        results = self._store.batch_put_from(list(keys), _addresses(pages), sizes)
        if any(results):
            raise SystemExit(f"a store failed: {sorted(set(results))}")

    def restore(self, keys: Sequence[str], pages: Sequence[Page]) -> None:
        sizes = [self._terms.block_bytes] * len(keys)
        results = self._store.batch_get_into(list(keys), _addresses(pages), sizes)
        if list(results) != sizes:
            raise SystemExit(f"a restore failed: {sorted(set(results))}")

    def forget(self, keys: Sequence[str]) -> None:
        self._store.batch_remove(list(keys), True)


def _addresses(pages: Sequence[Page]) -> list[int]:
    return [page.ctypes.data for page in pages]


def _folder() -> Path:
    found = importlib.util.find_spec("mooncake")
    if found is None or not found.submodule_search_locations:
        raise Absent(f"not installed: pip install {_PACKAGES[0]}")
    return Path(found.submodule_search_locations[0])


def _program(folder: Path, name: str) -> str:
    path = folder / name
    if not os.access(path, os.X_OK):  # wheels do not keep the mode
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def _version() -> str:
    for package in _PACKAGES:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    serve(MooncakePeer)
