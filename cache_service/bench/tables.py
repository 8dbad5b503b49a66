"""The storage benchmark's tables for people: 100 columns, limits beside the figures."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kvtier.bench.tables import at_least, at_most, bench_table, number, size

__all__ = ["show"]

RATIO_MIN = 0.9
CPU_SECONDS_PER_GB_MAX = 0.15
AMPLIFICATION_MAX = 1.05
RECOVERY_SECONDS_MAX = 3.0
INDEX_BYTES_MAX = 200.0
FULL_COLLECTION_SECONDS_MAX = 0.020


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints machine, settings, tables."""
    settings = result["settings"]
    console.print(
        f"{result['system']}, {result['cpu_count']} CPUs, load {result['load_average']:.1f}\n"
        f"{settings['directory']}: {settings['rounds']} turns of {size(settings['round_bytes'])},"
        f" {settings['threads']} fio threads, ring of {size(settings['capacity_bytes'])},"
        f" {settings['relog_share']:.0%} re-logged",
        highlight=False,
        soft_wrap=True,
    )
    if result["fio"] != "installed":
        console.print(result["fio"], style="yellow", highlight=False)
    if result["results"]:
        console.print(_speeds(result["results"]))
        console.print(_costs(result["results"]))
    if result["recovery"]:
        console.print(_restarts(result["recovery"]))


def _speeds(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        f"\nGB/s (store, cold restore: at least {RATIO_MIN} of fio; synced: as often as appends)",
        *("block", "fill", "store", "fio", "ratio", "to synced", "cold", "fio", "ratio", "warm"),
        *("rocks w", "r"),
    )
    for row in rows:
        table.add_row(
            _block(row),
            f"{row['first_fill_GBps']:.2f}",
            f"{row['store_GBps']:.2f}",
            number(row["fio_write_GBps"]),
            at_least(row["store_ratio_to_fio"], RATIO_MIN),
            number(row["store_ratio_to_synced_fio"]),
            f"{row['cold_restore_GBps']:.2f}",
            number(row["fio_read_GBps"]),
            at_least(row["cold_restore_ratio_to_fio"], RATIO_MIN),
            f"{row['warm_restore_GBps']:.2f}",
            f"{row['rocksdict_store_GBps']:.2f}",
            f"{row['rocksdict_restore_GBps']:.2f}",
        )
    return table


def _costs(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        f"\nCPU s/GB (limit {CPU_SECONDS_PER_GB_MAX}), write amplification"
        f" (limit {AMPLIFICATION_MAX}), one block p50/p99 in ms",
        *("block", "store", "fio", "cold", "fio", "floor", "rocks w", "ampl.", "rocks"),
        *("store ms", "cold ms", "io"),
    )
    for row in rows:
        store, cold = (
            f"{row[f'{kind}_block_seconds_p50'] * 1e3:.1f}"
            f"/{row[f'{kind}_block_seconds_p99'] * 1e3:.1f}"
            for kind in ("store", "cold_restore")
        )
        table.add_row(
            _block(row),
            at_most(row["store_cpu_seconds_per_GB"], CPU_SECONDS_PER_GB_MAX, 3),
            number(row["fio_write_cpu_seconds_per_GB"], 3),
            at_most(row["cold_restore_cpu_seconds_per_GB"], CPU_SECONDS_PER_GB_MAX, 3),
            number(row["fio_read_cpu_seconds_per_GB"], 3),
            number(row["floor_cpu_seconds_per_GB"], 3),
            f"{row['rocksdict_store_cpu_seconds_per_GB']:.2f}",
            at_most(row["write_amplification"], AMPLIFICATION_MAX, 3),
            number(row["rocksdict_write_amplification"]),
            store,
            cold,
            row["io_mode"],
        )
    return table


def _block(row: dict[str, Any]) -> str:
    return f"{size(row['block_bytes'])}{' enc' if row['encrypted'] else ''}"


def _restarts(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        f"\nReady after a restart (limits: {RECOVERY_SECONDS_MAX:.0f} s,"
        f" {INDEX_BYTES_MAX:.0f} bytes of memory a block,"
        f" {FULL_COLLECTION_SECONDS_MAX * 1e3:.0f} ms full collection;"
        "\ncold: the index not in the page cache; medians, and the slowest)",
        *("blocks", "cold s", "max", "tier s", "CPU s", "warm s", "max", "CPU s"),
        *("bytes/block", "on disk", "full coll. ms"),
    )
    for row in rows:
        table.add_row(
            f"{row['blocks']:,}",
            *(at_most(row[name], RECOVERY_SECONDS_MAX) for name in ("seconds", "seconds_max")),
            *(f"{row[name]:.2f}" for name in ("tier_seconds", "cpu_seconds")),
            *(
                at_most(row[name], RECOVERY_SECONDS_MAX)
                for name in ("warm_seconds", "warm_seconds_max")
            ),
            f"{row['warm_cpu_seconds']:.2f}",
            at_most(row["index_bytes_per_block"], INDEX_BYTES_MAX, 0),
            f"{row['index_file_bytes_per_block']:.0f}",
            at_most(row["full_collection_seconds"] * 1e3, FULL_COLLECTION_SECONDS_MAX * 1e3, 1),
        )
    return table
