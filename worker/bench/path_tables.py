"""The path benchmark's tables for people: limits beside the figures, absent peers by name."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kvtier.bench.tables import at_least, at_most, bench_table, number, size

__all__ = ["show"]

SAME_HOST_RATIO_MIN = {2 << 20: 0.9, 256 << 10: 0.75}
"""Share of a one-thread copy that store and restore have to reach, by block size."""
OTHER_HOST_RATIO_MIN = 0.85
ONE_BLOCK_RESTORE_US_MAX = 800.0


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints machine, settings, tables."""
    settings = result["settings"]
    console.print(
        f"{result['system']}, {result['cpu_count']} CPUs, load {result['load_average']:.1f}\n"
        f"{settings['rounds']} turns of {size(settings['prefix_bytes'])}; memcpy"
        f" {result['memcpy_GBps']:.2f} GB/s, raw socket {result['raw_socket_GBps']:.2f} GB/s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_same_host(result["same_host"]))
    console.print(_other_host(result["other_host"]))
    under_tls = [row | {"transport": "bulk, TLS"} for row in result["under_tls"]]
    if under_tls:
        console.print(_under_tls(under_tls, result["raw_tls_socket_GBps"]))
    console.print(_costs([*result["same_host"], *result["other_host"], *under_tls]))
    console.print(_peers([row for row in result["peers"] if row["absent"] is None]))
    for name, transport, why in sorted(
        {(r["name"], r["transport"], r["absent"]) for r in result["peers"] if r["absent"]}
    ):
        console.print(f"absent: {name} ({transport}): {why}", style="yellow", highlight=False)


_WAYS = {"shared_memory": "memory"}
"""Shorter words for a narrow column."""

_SPEEDS = ("block", "way", "store", "limit", "ratio", "restore", "limit", "ratio")


def _speeds(row: dict[str, Any], ratio_min: float | None) -> tuple[str, ...]:
    return (
        size(row["block_bytes"]),
        _WAYS.get(row["transport"], row["transport"]),
        number(row["store_GBps"]),
        number(row["limit_store_GBps"]),
        at_least(row["store_ratio_to_limit"], ratio_min),
        number(row["restore_GBps"]),
        number(row["limit_restore_GBps"]),
        at_least(row["restore_ratio_to_limit"], ratio_min),
    )


def _one_block(row: dict[str, Any], limit_us: float | None) -> tuple[str, str]:
    return (
        at_most(row["one_block_restore_p50_us"], limit_us, 0),
        number(row["one_block_restore_p99_us"], 0),
    )


def _same_host(rows: list[dict[str, Any]]) -> Table:
    limits = ", ".join(f"{size(b)} {ratio}" for b, ratio in sorted(SAME_HOST_RATIO_MIN.items()))
    table = bench_table(
        f"\nSame host, GB/s beside a one-thread memcpy (ratios at least: {limits};\none block p50"
        f" at most {ONE_BLOCK_RESTORE_US_MAX:.0f} us; first: into a fresh arena)",
        *_SPEEDS,
        *("first", "ratio", "1 block us", "p99"),
    )
    for row in rows:
        ratio_min = SAME_HOST_RATIO_MIN.get(row["block_bytes"])
        table.add_row(
            *_speeds(row, ratio_min),
            number(row["first_store_GBps"]),
            at_least(row["first_store_ratio_to_limit"], ratio_min),
            *_one_block(row, ONE_BLOCK_RESTORE_US_MAX),
        )
    return table


def _other_host(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        "\nOther host, GB/s over loopback TCP beside a raw socket (ratios at least"
        f" {OTHER_HOST_RATIO_MIN})",
        *_SPEEDS,
        *("1 block us", "p99"),
    )
    for row in rows:
        table.add_row(*_speeds(row, OTHER_HOST_RATIO_MIN), *_one_block(row, None))
    return table


def _under_tls(rows: list[dict[str, Any]], limit_GBps: float) -> Table:
    table = bench_table(
        "\nUnder TLS, GB/s over loopback TCP beside a raw TLS socket"
        f" ({limit_GBps:.2f} GB/s both ways)",
        *_SPEEDS,
        *("1 block us", "p99"),
    )
    for row in rows:
        table.add_row(*_speeds(row, None), *_one_block(row, None))
    return table


def _costs(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        "\nCPU seconds a GB",
        *("block", "transport", "store: client", "service", "restore: client", "service"),
    )
    for row in rows:
        table.add_row(
            size(row["block_bytes"]),
            row["transport"],
            *(
                number(row[f"{verb}_{side}_cpu_seconds_per_GB"], 3)
                for verb in ("store", "restore")
                for side in ("client", "service")
            ),
        )
    return table


def _peers(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        "\nPeers in the same turns, GB/s (ours: as many times as fast, same or other host)",
        *(
            "peer",
            "transport",
            "block",
            "store",
            "ours",
            "restore",
            "ours",
            "1 block p50 us",
            "p99",
        ),
    )
    for row in rows:
        table.add_row(
            row["name"],
            row["transport"],
            size(row["block_bytes"]),
            number(row["store_GBps"]),
            at_least(row["our_store_ratio_to_it"], 1.0),
            number(row["restore_GBps"]),
            at_least(row["our_restore_ratio_to_it"], 1.0),
            *_one_block(row, None),
        )
    return table
