"""Tables for people: right-aligned numbers, thousands in groups, hit rate in percent.

Amounts keep every digit they came with. Pure but for printing to the console it is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show_book", "show_invoice", "show_report", "show_verification"]

_HEADINGS = {
    "request_count": "requests",
    "prompt_tokens": "prompt",
    "hit_tokens": "hit",
    "miss_tokens": "miss",
    "output_tokens": "output",
    "hit_rate": "hit rate",
    "quantity_tokens": "tokens",
    "token_class": "class",
    "price_book_version": "prices of",
}
_WORDS = {"tenant", "model", "day", "hour", "currency", "token_class", "price_book_version"}
_UNRATED = "unrated"


def show_report(console: Console, data: Mapping[str, Any], keys: Sequence[str]) -> None:
    """`keys`: the row's columns in order; the group's first."""
    if not data["rows"]:
        console.print("No usage in this period.")
        return
    table = _table("Usage", keys)
    rows, totals = _aligned(data["rows"], data["totals"])
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in keys))
    table.add_section()
    for total in totals:
        cells = [_cell(key, total[key]) if key in total else "" for key in keys]
        cells[0] = cells[0] or "total"
        table.add_row(*cells, style="bold")
    console.print(table)
    if any(not row["currency"] for row in data["rows"]):
        console.print(
            "unrated: no version of the price book covers these requests; see docs/billing.md",
            style="yellow",
        )


def show_invoice(console: Console, data: Mapping[str, Any]) -> None:
    start, end = data["period"]["start"] or "the beginning", data["period"]["end"] or "now"
    keys = ("model", "token_class", "quantity_tokens", "unit_price", "amount", "price_book_version")
    table = _table(f"Invoice of {data['tenant']}, from {start} to {end}", keys)
    for line in data["lines"]:
        price = f"{grouped(line['unit_price'])} per {line['unit_tokens']:,}"
        row = {**line, "unit_price": price, "amount": grouped(line["amount"])}
        table.add_row(*(_cell(key, row[key]) for key in keys))
    table.add_section()
    table.add_row("total", "", "", "", grouped(data["total"]), data["currency"], style="bold")
    console.print(table)
    console.print(
        f"{data['request_count']:,} requests; cache hits saved"
        f" {grouped(data['saved'])} {data['currency']}",
        highlight=False,
    )
    if data["unrated_request_count"]:
        console.print(
            f"{data['unrated_request_count']:,} requests are unrated and in no line",
            style="yellow",
            highlight=False,
        )


def show_verification(console: Console, data: Mapping[str, Any]) -> None:
    counts = f"{data['entry_count']:,} entries, {data['posting_count']:,} postings"
    if data["verified"]:
        console.print(f"The ledger holds: {counts}.", style="green", highlight=False)
    else:
        where = data["first_broken_position"]
        place = f"position {where:,}" if where else "outside the chain of entries"
        console.print(f"The ledger does NOT hold: {counts}.", style="bold red", highlight=False)
        console.print(f"First problem, {place}: {data['problem']}", highlight=False, markup=False)
    console.print(
        f"unrated {data['unrated_count']:,}, refused and kept aside {data['refused_count']:,}",
        highlight=False,
    )
    console.print(f"head {data['head_hash']}", highlight=False, soft_wrap=True)


def show_book(console: Console, data: Mapping[str, Any]) -> None:
    for version in data["versions"]:
        console.print(
            f"{version['version']}: from {version['effective_time']},"
            f" {version['currency']} per 1,000,000 tokens",
            style="bold",
            highlight=False,
            markup=False,
        )
        console.print(version["source"], highlight=False, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("model")
        for name in ("hit", "miss", "output"):
            table.add_column(name, justify="right")
        for price in version["prices"]:
            table.add_row(
                escape(price["model"]), *(grouped(price[n]) for n in ("hit", "miss", "output"))
            )
        console.print(table)


def grouped(amount: str) -> str:
    """Decimal text with its thousands grouped, every digit kept."""
    sign, digits = ("-", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, point, fraction = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{fraction}"


def _table(title: str, keys: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for key in keys:
        table.add_column(
            _HEADINGS.get(key, key),
            justify="left" if key in _WORDS else "right",
            # A number cut in half is a wrong number; names may wrap.
            no_wrap=key not in ("tenant", "model", "price_book_version"),
            overflow="fold",
        )
    return table


def _aligned(*parts: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Copies whose amounts are grouped and have as many decimals as the longest of them."""
    copies = [[dict(row) for row in part] for part in parts]
    for key in ("amount", "saved"):
        priced = [row for part in copies for row in part if row["currency"]]
        fractions = [len(row[key].partition(".")[2]) for row in priced]
        width = max(fractions, default=0)
        for row, digits in zip(priced, fractions, strict=True):
            point = "." if digits == 0 < width else ""
            row[key] = grouped(row[key]) + point + "0" * (width - digits)
        for row in (row for part in copies for row in part if not row["currency"]):
            row[key] = "-"
    return copies


def _cell(key: str, value: Any) -> str:
    if key == "hit_rate":
        return "-" if value is None else f"{value:.1%}"
    if key == "currency":
        return value or _UNRATED
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
