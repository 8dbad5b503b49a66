"""The obvious alternative: RocksDB, through the same binding, holding the values themselves.

Its defaults, without compression (KV bytes do not shrink), one synced log at the end. Read back
after it was opened again and the page cache was asked to forget its files.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rocksdict

from storage.bench.memory import BlockMemory
from storage.bench.meter import Cost, measured

__all__ = ["RocksFigures", "measure_rocksdb"]


@dataclass(frozen=True, slots=True)
class RocksFigures:
    """Values stored in RocksDB, and read from it."""

    store: Cost
    restore: Cost


def measure_rocksdb(directory: Path, block_bytes: int, size_bytes: int) -> RocksFigures:
    """Blocks. What it makes in `directory` is removed again."""
    path = directory / "rocksdb"
    count = max(1, size_bytes // block_bytes)
    memory = BlockMemory(block_bytes)
    try:
        store = _store(path, memory, count)
        store.payload_bytes = count * block_bytes
        drop_page_cache(path)
        restore = _restore(path, memory, count)
        restore.payload_bytes = count * block_bytes
    finally:
        memory.close()
        shutil.rmtree(path, ignore_errors=True)
    return RocksFigures(store, restore)


def _store(path: Path, memory: BlockMemory, count: int) -> Cost:
    with measured() as cost:
        database = rocksdict.Rdict(str(path), _options())
        for number in range(count):
            began = time.perf_counter()
            database[_key(number)] = bytes(memory.source(number)[0])
            cost.block_seconds.append(time.perf_counter() - began)
        database.flush_wal(True)
        database.flush()
        database.close()
    return cost


def _restore(path: Path, memory: BlockMemory, count: int) -> Cost:
    database = rocksdict.Rdict(str(path), _options())
    targets: Iterator[memoryview] = itertools.cycle(memory.targets)
    with measured() as cost:
        for number, target in zip(range(count), targets, strict=False):
            began = time.perf_counter()
            value = database[_key(number)]
            if not isinstance(value, bytes):
                raise SystemExit("RocksDB lost a value")
            target[:] = value
            cost.block_seconds.append(time.perf_counter() - began)
    database.close()
    return cost


def drop_page_cache(path: Path) -> None:
    """Asks the kernel to forget what it keeps of the files under `path`."""
    os.sync()
    for folder, _, names in os.walk(path):
        for name in names:
            fd = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    return options
