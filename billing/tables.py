"""Tables for people: right-aligned numbers, thousands in groups, hit rate in percent.

Amounts keep every digit they came with. Pure but for printing to the console it is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from billing.statement import invoice_rows

__all__ = [
    "class_of",
    "grouped",
    "show_book",
    "show_entry",
    "show_invoice",
    "show_report",
    "show_rows",
    "show_verification",
]

_HEADINGS = {
    "request_count": "requests",
    "prompt_tokens": "prompt",
    "hit_tokens": "hit",
    "miss_tokens": "miss",
    "output_tokens": "output",
    "cache_writes": "cache writes",
    "net_saved": "saved, net",
    "storage_token_seconds": "token-s kept",
    "hit_rate": "hit rate",
    "quantity_tokens": "tokens",
    "unit_price": "price",
    "unit_tokens": "per",
    "token_class": "class",
    "price_book_version": "prices of",
    "charged_requests": "requests",
    "rerated_requests": "requests then",
    "rerated": "under the book",
    "topped_up": "topped up",
}
_WORDS = {
    "tenant",
    "project",
    "key",
    "model",
    "day",
    "hour",
    "currency",
    "token_class",
    "price_book_version",
    "rule",
    "why",
    "balance",
    "rates",
    "alerts",
    "kind",
    "time",
}
_UNRATED = "unrated"
_UNBOUND = 100_000
"""Columns: wider than any table, so that measuring one does not already fit it to the screen."""


def show_report(console: Console, data: Mapping[str, Any], keys: Sequence[str]) -> None:
    """`keys`: the row's columns in order; the group's first."""
    if not data["rows"]:
        console.print("No usage in this period.")
        return
    if not any(row["cache_writes"] for row in data["rows"]):
        keys = [key for key in keys if key != "cache_writes"]
    if not any(row["corrected"] != "0" for row in data["rows"]):
        keys = [key for key in keys if key != "corrected"]
    if not any(row["storage_token_seconds"] for row in data["rows"]):
        keys = [key for key in keys if key != "storage_token_seconds"]
    if all(row["net_saved"] == row["saved"] for row in data["rows"]):
        keys = [key for key in keys if key != "net_saved"]
    rows, totals = _aligned(data["rows"], data["totals"])
    for total in totals:
        total.setdefault(keys[0], "total")
    show_rows(console, "Usage", keys, rows, totals)
    if any(not row["currency"] for row in data["rows"]):
        console.print(
            "unrated: no version of the price book covers these requests; see docs/billing.md",
            style="yellow",
        )


def show_invoice(console: Console, data: Mapping[str, Any]) -> None:
    start, end = data["period"]["start"] or "the beginning", data["period"]["end"] or "now"
    keys = [
        "model",
        "token_class",
        "quantity_tokens",
        "unit_price",
        "unit_tokens",
        "amount",
        "price_book_version",
    ]
    rows = invoice_rows(data)
    if any(row["rule"] for row in rows):
        keys.append("rule")
    lines = [
        {
            **line,
            "token_class": class_of(line),
            "unit_price": grouped(line["unit_price"]) if line["unit_price"] else "",
            "amount": grouped(line["amount"]),
        }
        for line in rows
    ]
    total = {
        "model": "total",
        "amount": grouped(data["total"]),
        "price_book_version": data["currency"],
    }
    title = f"Invoice of {data['tenant']}, from {start} to {end}"
    show_rows(console, title, keys, lines, [total])
    console.print(
        f"{data['request_count']:,} requests; cache hits saved"
        f" {data['currency']} {grouped(data['saved'])}{_net(data)}",
        highlight=False,
    )
    if data["cache_writes"]:
        written = cache_writes_text(data["cache_writes"])
        console.print(
            f"of miss and output, written to the cache: {written}", highlight=False, markup=False
        )
    for each in data["corrections"]:
        why = f"{each['kind']} of {each['request_id']}: {each['reason']} ({each['correction_id']})"
        console.print(why, highlight=False, markup=False)
    for each in data["credits"]:
        console.print(
            f"credit {each['name']}: {data['currency']} {grouped(each['left'])} left, until"
            f" {each['expires']}",
            highlight=False,
            markup=False,
        )
    if data["unrated_request_count"]:
        console.print(
            f"{data['unrated_request_count']:,} requests are unrated and in no line",
            style="yellow",
            highlight=False,
        )


def _net(data: Mapping[str, Any]) -> str:
    if data["net_saved"] == data["saved"]:
        return ""
    return f", {grouped(data['net_saved'])} of it after what cache writes and storage cost"


def show_entry(console: Console, data: Mapping[str, Any]) -> None:
    """Line by line; "-" is what nobody said, or does not apply."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in data.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, each in parts:
            label = f"{name} {part}".strip().replace("_", " ")
            table.add_row(label, escape(_entry_text(name, each)))
    console.print(table)


def _entry_text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "lines":
        return "\n".join(map(_line_text, value)) or "none"
    if isinstance(value, list):
        return ", ".join(map(_item_text, value)) or "none"
    if isinstance(value, int) and "token" in name:
        return f"{value:,}"
    return str(value)


def _line_text(line: Mapping[str, Any]) -> str:
    name = f"{line['token_class']} {line['cache_write_ttl_class']}".strip()
    price = f"{line['quantity']:,} x {grouped(line['unit_price'])} per {line['unit_tokens']:,}"
    return f"{name}: {price} = {grouped(line['amount'])} ({'; '.join(line['derivation'])})"


def _item_text(item: Any) -> str:
    if isinstance(item, str):
        return item
    return f"{item['kind']} {item['amount']} {item['currency']} ({item['reason']})"


def show_verification(console: Console, data: Mapping[str, Any]) -> None:
    counts = f"{data['entries']:,} entries, {data['postings']:,} postings"
    counts += f", {data['checkpoints']:,} checkpoints"
    if data["verified"]:
        console.print(f"The ledger holds: {counts}.", style="green", highlight=False)
    else:
        where = data["first_broken"]
        place = f"position {where:,}" if where else "outside the chain of entries"
        console.print(f"The ledger does NOT hold: {counts}.", style="bold red", highlight=False)
        console.print(f"First problem, {place}: {data['problem']}", highlight=False, markup=False)
    console.print(
        f"unrated {data['unrated']:,}, refused and kept aside {data['refused']:,}",
        highlight=False,
    )
    console.print(f"head {data['head_hash']}", highlight=False, soft_wrap=True)


def show_book(console: Console, data: Mapping[str, Any]) -> None:
    for version in data["versions"]:
        console.print(
            f"{version['version']}: from {version['effective_time']},"
            f" {version['currency']}{_per(version['prices'])}",
            style="bold",
            highlight=False,
            markup=False,
        )
        console.print(version["source"], highlight=False, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("model")
        for name in ("hit", "miss", "output"):
            table.add_column(name, justify="right")
        written = any(price["cache_write"] for price in version["prices"])
        if written:
            table.add_column("cache write", justify="right")
        for price in version["prices"]:
            by_class = price["cache_write"].items()
            more = ", ".join(f"{_ttl(name)} {grouped(each)}" for name, each in sorted(by_class))
            table.add_row(
                escape(price["model"]),
                *(grouped(price[n]) for n in ("hit", "miss", "output")),
                *([escape(more)] if written else []),
            )
        console.print(table)
        for price in version["prices"]:
            for rule in price["rules"]:
                console.print(f"{price['model']}: {rule}", highlight=False, markup=False)


def _per(prices: Sequence[Mapping[str, Any]]) -> str:
    units = list(dict.fromkeys(price["unit_tokens"] for price in prices))
    return f" per {' and '.join(f'{each:,}' for each in units)} tokens"


def cache_writes_text(writes: Mapping[str, int]) -> str:
    """Tokens by TTL class."""
    return ", ".join(f"{_ttl(name)} {count:,}" for name, count in sorted(writes.items()))


def _ttl(name: str) -> str:
    return name or "no end"


def class_of(line: Mapping[str, Any]) -> str:
    """An invoice line's token class, with the TTL class where it has one."""
    name: str = line["token_class"]
    return f"{name} {_ttl(line['cache_write_ttl_class'])}" if name == "cache_write" else name


def grouped(amount: str) -> str:
    """Decimal text with its thousands grouped, every digit kept."""
    sign, digits = ("-", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, point, fraction = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{fraction}"


def show_rows(
    console: Console,
    title: str,
    keys: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    totals: Sequence[Mapping[str, Any]],
) -> None:
    """A table where the console is wide enough for it, else every row as lines of its own.

    A number cut in half is a wrong number, so nothing is ever cut or wrapped to make it fit.
    """
    table = _table(title, keys, rows, totals)
    unbound = console.options.update(width=_UNBOUND)
    if Measurement.get(console, unbound, table).maximum <= console.width:
        console.print(table)
        return
    console.print(title, style="italic", markup=False, highlight=False)
    for row in (*rows, *totals):
        console.print()
        console.print(_record(keys, row))
    console.print()


def _table(
    title: str,
    keys: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    totals: Sequence[Mapping[str, Any]],
) -> Table:
    table = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for key in keys:
        justify: JustifyMethod = "left" if key in _WORDS else "right"
        table.add_column(_HEADINGS.get(key, key), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in keys))
    table.add_section()
    for total in totals:
        cells = (_cell(key, total[key]) if key in total else "" for key in keys)
        table.add_row(*cells, style="bold")
    return table


def _record(keys: Sequence[str], row: Mapping[str, Any]) -> Table:
    record = Table.grid(padding=(0, 2))
    record.add_column()
    record.add_column(overflow="fold")
    for key in keys:
        if key in row:
            record.add_row(_HEADINGS.get(key, key), _cell(key, row[key]))
    return record


def _aligned(*parts: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Copies whose amounts are grouped and have as many decimals as the longest of them."""
    copies = [[dict(row) for row in part] for part in parts]
    for key in ("amount", "saved", "net_saved"):
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
    if key == "cache_writes":
        return escape(cache_writes_text(value)) or "-"
    if key == "storage_token_seconds":
        return ", ".join(f"{tier} {grouped(each)}" for tier, each in value.items()) or "-"
    if key == "currency":
        return value or _UNRATED
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
