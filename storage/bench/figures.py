"""Figures of one block size, as medians over turns that ours, fio and memory took one by one."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.bench.figures import percentile
from storage.bench.fio import FioFigure
from storage.bench.meter import Cost
from storage.bench.rocks import RocksFigures

__all__ = ["BlockFigures", "Turn", "block_figures"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What was measured one right after the other."""

    store: Cost
    fio_write: FioFigure | None
    fio_synced: FioFigure | None
    cold: Cost
    fio_read: FioFigure | None
    floor: Cost | None
    warm: Cost


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """All that is said of one block size. None: could not be measured here."""

    block_bytes: int
    io_mode: str
    """"direct" or "buffered"."""
    store_GBps: float
    """Into a full ring: segments are recycled, and some of their blocks re-logged, meanwhile."""
    cold_restore_GBps: float
    warm_restore_GBps: float
    fio_write_GBps: float | None
    fio_read_GBps: float | None
    store_ratio_to_fio: float | None
    cold_restore_ratio_to_fio: float | None
    """Medians of the ratios within each turn."""
    fio_synced_write_GBps: float | None
    store_ratio_to_synced_fio: float | None
    """The same with fio syncing as often as appends do; above, it syncs once at the end."""
    store_cpu_seconds_per_GB: float
    cold_restore_cpu_seconds_per_GB: float
    floor_cpu_seconds_per_GB: float | None
    """Of reading and hashing as many bytes in as large reads, and nothing else; None without fio,
    whose file they come from."""
    floor_GBps: float | None
    warm_restore_cpu_seconds_per_GB: float
    fio_write_cpu_seconds_per_GB: float | None
    fio_read_cpu_seconds_per_GB: float | None
    write_amplification: float
    """Bytes to the device (records, headers, index, its log) per byte of payload, in steady state,
    as the kernel accounts them; where it does not, of the segments alone."""
    first_fill_GBps: float
    first_fill_write_amplification: float | None
    """With the zeros that each segment gets once in its life."""
    store_block_seconds_p50: float
    store_block_seconds_p99: float
    """One block, durable, nothing else going on."""
    cold_restore_block_seconds_p50: float
    cold_restore_block_seconds_p99: float
    rocksdict_store_GBps: float
    rocksdict_restore_GBps: float
    rocksdict_store_cpu_seconds_per_GB: float
    rocksdict_restore_cpu_seconds_per_GB: float
    rocksdict_write_amplification: float | None
    turns: tuple[tuple[float | None, ...], ...]
    """Per turn, GB/s: store, fio write, cold restore, fio read, warm restore."""
    encrypted: bool = False
    """Of what ours stores; fio and RocksDB never do."""


def block_figures(
    block_bytes: int,
    io_mode: str,
    turns: Sequence[Turn],
    first_fill: Cost,
    singles: tuple[Cost, Cost],
    rocks: RocksFigures,
    segment_amplification: float,
) -> BlockFigures:
    """Medians of `turns`, and the rest as it is. `singles`: stores, restores of one block."""

    def median(of: Callable[[Turn], float]) -> float:
        return statistics.median(map(of, turns))

    def fio(
        of: Callable[[Turn], FioFigure | None], read: Callable[[FioFigure], float]
    ) -> float | None:
        found = [figure for turn in turns if (figure := of(turn)) is not None]
        return statistics.median(map(read, found)) if found else None

    def ratio(
        ours: Callable[[Turn], Cost], theirs: Callable[[Turn], FioFigure | None]
    ) -> float | None:
        ratios = [
            ours(turn).bytes_per_second / figure.bytes_per_second
            for turn in turns
            if (figure := theirs(turn)) is not None
        ]
        return statistics.median(ratios) if ratios else None

    floors = [turn.floor for turn in turns if turn.floor is not None]
    amplifications = [x for turn in turns if (x := turn.store.amplification) is not None]
    store, restore = singles
    return BlockFigures(
        block_bytes=block_bytes,
        io_mode=io_mode,
        store_GBps=median(lambda t: t.store.bytes_per_second) / 1e9,
        cold_restore_GBps=median(lambda t: t.cold.bytes_per_second) / 1e9,
        warm_restore_GBps=median(lambda t: t.warm.bytes_per_second) / 1e9,
        fio_write_GBps=fio(lambda t: t.fio_write, _gbps),
        fio_read_GBps=fio(lambda t: t.fio_read, _gbps),
        store_ratio_to_fio=ratio(lambda t: t.store, lambda t: t.fio_write),
        cold_restore_ratio_to_fio=ratio(lambda t: t.cold, lambda t: t.fio_read),
        fio_synced_write_GBps=fio(lambda t: t.fio_synced, _gbps),
        store_ratio_to_synced_fio=ratio(lambda t: t.store, lambda t: t.fio_synced),
        store_cpu_seconds_per_GB=median(lambda t: t.store.cpu_seconds_per_gb),
        cold_restore_cpu_seconds_per_GB=median(lambda t: t.cold.cpu_seconds_per_gb),
        floor_cpu_seconds_per_GB=(
            statistics.median(each.cpu_seconds_per_gb for each in floors) if floors else None
        ),
        floor_GBps=(
            statistics.median(each.bytes_per_second for each in floors) / 1e9 if floors else None
        ),
        warm_restore_cpu_seconds_per_GB=median(lambda t: t.warm.cpu_seconds_per_gb),
        fio_write_cpu_seconds_per_GB=fio(lambda t: t.fio_write, lambda f: f.cpu_seconds_per_gb),
        fio_read_cpu_seconds_per_GB=fio(lambda t: t.fio_read, lambda f: f.cpu_seconds_per_gb),
        write_amplification=(
            statistics.median(amplifications) if amplifications else segment_amplification
        ),
        first_fill_GBps=first_fill.bytes_per_second / 1e9,
        first_fill_write_amplification=first_fill.amplification,
        store_block_seconds_p50=percentile(store.block_seconds, 50),
        store_block_seconds_p99=percentile(store.block_seconds, 99),
        cold_restore_block_seconds_p50=percentile(restore.block_seconds, 50),
        cold_restore_block_seconds_p99=percentile(restore.block_seconds, 99),
        rocksdict_store_GBps=rocks.store.bytes_per_second / 1e9,
        rocksdict_restore_GBps=rocks.restore.bytes_per_second / 1e9,
        rocksdict_store_cpu_seconds_per_GB=rocks.store.cpu_seconds_per_gb,
        rocksdict_restore_cpu_seconds_per_GB=rocks.restore.cpu_seconds_per_gb,
        rocksdict_write_amplification=rocks.store.amplification,
        turns=tuple(_speeds(turn) for turn in turns),
    )


def _gbps(figure: FioFigure) -> float:
    return figure.bytes_per_second / 1e9


def _speeds(turn: Turn) -> tuple[float | None, ...]:
    return (
        turn.store.bytes_per_second / 1e9,
        _gbps(turn.fio_write) if turn.fio_write else None,
        turn.cold.bytes_per_second / 1e9,
        _gbps(turn.fio_read) if turn.fio_read else None,
        turn.warm.bytes_per_second / 1e9,
    )
