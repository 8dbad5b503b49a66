"""The lookup benchmark's table for people: limits beside the figures."""

from typing import Any

from rich.console import Console

from kvtier.bench.tables import at_least, at_most, bench_table, number

__all__ = ["show"]

P50_US_MAX = {256: 700.0, 2048: 3000.0}
"""Of one client's calls, by keys a call."""
KEYS_PER_SECOND_MIN = 1e6
"""Of one service process, with 8 clients and calls of 2,048 keys."""
_FULL_LOAD = 2048, 8


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints machine, settings, table."""
    settings = result["settings"]
    console.print(
        f"{result['system']}, {result['cpu_count']} CPUs, load {result['load_average']:.1f}\n"
        f"{settings['rounds']} rounds of {settings['round_seconds']:g} s",
        highlight=False,
        soft_wrap=True,
    )
    table = bench_table(
        "\nLookups (limits: p50 of one client 0.7 ms for 256 keys, 3 ms for 2,048; 1 M keys/s"
        " by 8 clients;\nCPU: the service's, of one core; client: CPU us a call)",
        *("cached", "over", "keys", "clients", "p50 us", "p99 us", "keys/s", "CPU us/key"),
        *("us/call", "busy", "client"),
    )
    for row in result["results"]:
        one = row["clients"] == 1
        full = (row["keys_per_call"], row["clients"]) == _FULL_LOAD
        table.add_row(
            f"{row['cached_blocks']:,}",
            row["transport"],
            f"{row['keys_per_call']:,}",
            str(row["clients"]),
            at_most(row["p50_us"], P50_US_MAX.get(row["keys_per_call"]) if one else None, 0),
            number(row["p99_us"], 0),
            at_least(row["keys_per_second"], KEYS_PER_SECOND_MIN if full else None, 0),
            number(row["service_cpu_us_per_key"], 3),
            number(row["service_cpu_us_per_call"], 0),
            f"{row['service_cpu_share']:.0%}",
            number(row["client_cpu_us_per_call"], 0),
        )
    console.print(table)
