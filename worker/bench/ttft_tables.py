"""The TTFT benchmark's tables for people: bars beside the figures, absent peers by name."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kvtier.bench.tables import at_least, at_most, bench_table, number

__all__ = ["show"]

COLD_OVER_MIN = {"host": 20.0, "ssd": 15.0}
"""How many times sooner than cold a warm answer begins, by tier; of contexts from
`BAR_CONTEXT_TOKENS` on."""
COLD_OVER_TRANSFORMERS_MAX = 1.10
DECODE_OVER_ONE_MIN = {8: 4.0}
BAR_CONTEXT_TOKENS = 4096


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints machine, settings, tables."""
    settings = result["settings"]
    console.print(
        f"{result['system']}, {result['cpu_count']} CPUs, load {result['load_average']:.1f}\n"
        f"{result['model']} ({result['architecture']}, {result['dtype']}) on {result['device']},"
        f" {settings['rounds']} rounds",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_seconds(result["results"]))
    console.print(_rates(result["results"]))
    if result["decode"]:
        console.print(_decode(result["decode"]))
    there = [peer for peer in result["peers"] if peer["absent"] is None]
    if there:
        console.print(_peers(there))
    for peer in result["peers"]:
        if peer["absent"]:
            console.print(
                f"absent: {peer['name']}: {peer['absent']}", style="yellow", highlight=False
            )


def _seconds(rows: list[dict[str, Any]]) -> Table:
    host, ssd = COLD_OVER_MIN["host"], COLD_OVER_MIN["ssd"]
    table = bench_table(
        "\nSeconds to the first token, medians; cold over each (from"
        f" {BAR_CONTEXT_TOKENS:,} tokens: host at least {host:.0f},\nSSD {ssd:.0f}; over"
        f" transformers at most {COLD_OVER_TRANSFORMERS_MAX})",
        *("context", "new", "transf.", "cold", "/transf.", "GPU", "cold/GPU"),
        *("host", "cold/host", "SSD", "cold/SSD"),
    )
    for row in rows:
        barred = row["context_tokens"] >= BAR_CONTEXT_TOKENS
        table.add_row(
            f"{row['context_tokens']:,}",
            str(row["new_tokens"]),
            number(row["transformers_seconds"], 3),
            number(row["cold_seconds"], 3),
            at_most(row["cold_over_transformers"], COLD_OVER_TRANSFORMERS_MAX if barred else None),
            number(row["gpu_seconds"], 3),
            number(row["cold_over_gpu"], 1),
            number(row["host_seconds"], 3),
            at_least(row["cold_over_host"], COLD_OVER_MIN["host"] if barred else None, 1),
            number(row["ssd_seconds"], 3),
            at_least(row["cold_over_ssd"], COLD_OVER_MIN["ssd"] if barred else None, 1),
        )
    return table


def _rates(rows: list[dict[str, Any]]) -> Table:
    names = {"transformers": "transformers", "cold": "cold", "gpu": "GPU"}
    names |= {"host": "host", "ssd": "SSD"}
    table = bench_table(
        "\nPrompt tokens a second until the first token", "context", *names.values()
    )
    for row in rows:
        rates = row["prompt_tokens_per_second"]
        table.add_row(f"{row['context_tokens']:,}", *(number(rates[name], 0) for name in names))
    return table


def _decode(rows: list[dict[str, Any]]) -> Table:
    table = bench_table(
        f"\nDecoding at once, in {rows[0]['context_tokens']:,}\ntokens each (8 over 1:\nat least"
        f" {DECODE_OVER_ONE_MIN[8]:.0f})",
        *("requests", "tokens/s", f"over {rows[0]['requests']}", "in one context", "over it"),
    )
    for row in rows:
        bar = DECODE_OVER_ONE_MIN.get(row["requests"]) if rows[0]["requests"] == 1 else None
        table.add_row(
            str(row["requests"]),
            number(row["tokens_per_second"], 1),
            at_least(row["over_first"], bar),
            number(row["shared_tokens_per_second"], 1),
            at_least(row["shared_over_first"], bar),
        )
    return table


def _peers(peers: list[dict[str, Any]]) -> Table:
    table = bench_table(
        "\nOther engines in the same rounds: seconds, its over ours; GPU: from its own pages",
        *("engine", "context", "cold", "over ours", "GPU", "over ours", "cold/GPU"),
    )
    for peer in peers:
        for row in peer["results"]:
            table.add_row(
                peer["name"],
                f"{row['context_tokens']:,}",
                number(row["cold_seconds"], 3),
                number(row["its_cold_over_ours"]),
                number(row["gpu_seconds"], 3),
                number(row["its_gpu_over_ours"]),
                number(row["cold_over_gpu"], 1),
            )
        for row in peer["decode"]:
            table.add_row(
                peer["name"],
                f"decode {row['requests']}",
                *(f"{number(row['tokens_per_second'], 1)}/s", number(1 / row["our_ratio_to_it"])),
            )
    return table
