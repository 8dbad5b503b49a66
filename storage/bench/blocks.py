"""Measures one block size: fills a ring, then ours and fio take turns on the same file system."""

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage.bench.figures import BlockFigures, Turn, block_figures
from storage.bench.fio import Fio
from storage.bench.ring import Ring
from storage.bench.rocks import measure_rocksdb
from storage.bench.settings import BenchSettings

__all__ = ["measure_blocks"]


def measure_blocks(
    settings: BenchSettings,
    block_bytes: int,
    fio: Fio,
    progress: Callable[[str], None],
    *,
    encrypted: bool = False,
) -> BlockFigures:
    """Blocks for some tens of seconds. `progress` is told what comes next."""
    size = f"{block_bytes // 1024} KiB blocks{', encrypted' if encrypted else ''}"

    def told(step: str) -> None:
        progress(f"{size}: {step}")

    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=settings.directory) as name:
        return asyncio.run(
            _measured(Path(name), settings, block_bytes, fio, told, encrypted=encrypted)
        )


async def _measured(
    directory: Path,
    settings: BenchSettings,
    block_bytes: int,
    fio: Fio,
    progress: Callable[[str], None],
    *,
    encrypted: bool,
) -> BlockFigures:
    ring_directory = directory / "ring"
    async with Ring(ring_directory, block_bytes, settings, encrypted=encrypted) as ring:
        io_mode = fio.io_mode = ring.tier.io_mode
        progress("fio writes its file")
        await asyncio.to_thread(fio.prepare)
        progress("first fill")
        first_fill = await ring.first_fill()
        await ring.settle()
        progress("ring full, warming up")
        await ring.steady_store()
        gc.freeze()  # as the service does when it has started
        written, payload = ring.tier.stats().written_bytes, 0
        turns = []
        for number in range(settings.rounds):
            progress(f"turn {number + 1} of {settings.rounds}")
            turns.append(
                await _turn(
                    ring, fio, block_bytes, settings.batch_bytes, ours_first=number % 2 == 0
                )
            )
            payload += turns[-1].store.payload_bytes
        gc.unfreeze()
        amplification = (ring.tier.stats().written_bytes - written) / payload
        progress("one block at a time")
        singles = await ring.single_stores(), await ring.single_restores()
    shutil.rmtree(ring_directory)
    progress("RocksDB holding the values")
    rocks = measure_rocksdb(directory, block_bytes, settings.rocksdb_bytes)
    figures = block_figures(block_bytes, io_mode, turns, first_fill, singles, rocks, amplification)
    return replace(figures, encrypted=encrypted)


async def _turn(ring: Ring, fio: Fio, block_bytes: int, batch_bytes: int, ours_first: bool) -> Turn:
    """Who goes first changes: a disk that was idle, or was given a burst, favours the first."""
    if ours_first:
        store = await ring.steady_store()
        fio_write = await asyncio.to_thread(fio.write, block_bytes)
        fio_synced = await asyncio.to_thread(fio.write, block_bytes, batch_bytes)
        cold = await ring.cold_restore()
        fio_read = await asyncio.to_thread(fio.read, block_bytes)
    else:
        fio_write = await asyncio.to_thread(fio.write, block_bytes)
        fio_synced = await asyncio.to_thread(fio.write, block_bytes, batch_bytes)
        store = await ring.steady_store()
        fio_read = await asyncio.to_thread(fio.read, block_bytes)
        cold = await ring.cold_restore()
    floor = await ring.floor(fio.verified_read()) if fio_read else None
    return Turn(store, fio_write, fio_synced, cold, fio_read, floor, await ring.warm_restore())
