"""The demo's tables for people. Reads a `DemoResult`, prints; decides nothing."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kvtier.cli.demo.checks import ratio
from kvtier.cli.demo.result import DemoResult

__all__ = ["show"]

TIER_NAMES = {"gpu": "GPU", "host": "host", "ssd": "SSD"}


def show(console: Console, result: DemoResult) -> None:
    """Prints turns, crash, bills and checks."""
    console.print()
    console.print(_turns(result))
    cold = result.turn("cold question")
    restart = result.restart
    if restart is not None:
        console.print(
            f"crash: {restart.blocks_before:,} blocks on the SSD before,"
            f" {restart.blocks_after:,} after; recovery {restart.recovery_seconds * 1000:,.0f} ms,"
            f" processes back in {restart.restart_seconds:,.1f} s",
            highlight=False,
        )
    console.print(
        f"first token sooner than cold: {ratio(result, cold, ('gpu',)):.0f}x from GPU pages,"
        f" {ratio(result, cold, ('host',)):.0f}x from host RAM,"
        f" {ratio(result, cold, ('ssd',)):.0f}x from SSD",
        highlight=False,
    )
    console.print()
    console.print(_bills(result))
    console.print()
    for name, held in result.checks.items():
        mark = "[green]✓[/green]" if held else "[red]✗[/red]"
        console.print(f" {mark} {name}", highlight=False)
    failed = sum(not held for held in result.checks.values())
    verdict = f"{failed} checks failed" if failed else "all checks hold"
    console.print(
        f"\n{len(result.checks)} checks, {verdict}; {result.seconds:.0f} s",
        style="red" if failed else "green",
        highlight=False,
    )


def _turns(result: DemoResult) -> Table:
    table = Table(title="What each request reused", title_justify="left", box=SIMPLE_HEAD)
    table.show_edge = False
    table.padding = (0, 0)
    for name in ("turn", "tenant"):
        table.add_column(name, no_wrap=True)
    for name in ("prompt", "hit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for name in ("miss", "out", "TTFT ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("=cold", no_wrap=True)
    for turn in result.turns:
        tiers = [TIER_NAMES[k] for k, n in turn.hit_tokens_by_tier.items() if n]
        table.add_row(
            turn.name,
            turn.tenant,
            f"{turn.prompt_tokens:,}",
            f"{turn.hit_tokens:,}",
            "+".join(tiers),
            f"{turn.miss_tokens:,}",
            f"{turn.completion_tokens:,}",
            f"{turn.ttft_seconds * 1000:,.0f}",
            {True: "yes", False: "NO", None: "-"}[turn.tokens_equal_cold],
        )
    return table


def _bills(result: DemoResult) -> Table:
    table = Table(title="Invoices", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("tenant")
    table.add_column("tokens of class")
    for name in ("quantity", "price", "per", "amount"):
        table.add_column(name, justify="right")
    for bill in result.bills:
        currency = bill.invoice.currency_code
        for line in bill.invoice.lines:
            table.add_row(
                bill.tenant,
                line.token_class,
                f"{line.quantity_tokens:,}",
                f"{currency} {line.unit_price}",
                f"{line.unit_tokens:,}",
                line.amount,
            )
        table.add_row(
            bill.tenant,
            "total",
            "",
            "",
            "",
            f"{currency} {bill.invoice.total_amount}",
            style="bold",
        )
        table.add_row(
            bill.tenant,
            "the cache saved",
            "",
            "",
            "",
            f"{currency} {bill.invoice.saved_amount}",
            style="green",
            end_section=True,
        )
    return table
