"""Tables of the price commands, for people. Pure but for printing to the console it is given."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from billing.tables import grouped, show_book, show_rows

__all__ = ["show_check", "show_rate", "show_rerate"]


def show_check(console: Console, data: Mapping[str, Any]) -> None:
    if not data["usable"]:
        for problem in data["problems"]:
            console.print(problem, highlight=False, markup=False, soft_wrap=True)
        return
    show_book(console, data)
    for each in data["terms"]:
        console.print(f"terms {each['name']}: of {each['tenant']}", highlight=False, markup=False)
    console.print("Usable.", style="green")


def show_rate(console: Console, data: Mapping[str, Any]) -> None:
    if not data["currency"]:
        console.print("No version of the price book covers this model at that time.")
        return
    keys = ["token_class", "quantity", "unit_price", "unit_tokens", "amount", "why"]
    lines = [
        {
            **line,
            "token_class": f"{line['token_class']} {line['cache_write_ttl_class']}".strip(),
            "unit_price": grouped(line["unit_price"]),
            "amount": grouped(line["amount"]),
            "why": "; ".join(line["derivation"]),
        }
        for line in data["lines"]
    ]
    total = {"token_class": "total", "amount": grouped(data["amount"]), "why": data["currency"]}
    show_rows(console, f"Prices of {data['price_book_version']}", keys, lines, [total])
    for note in data["notes"]:
        console.print(note, highlight=False, markup=False)
    if data["saved"] != "0":
        console.print(
            f"cache hits saved {data['currency']} {grouped(data['saved'])}", highlight=False
        )


def show_rerate(console: Console, data: Mapping[str, Any], group_by: Sequence[str]) -> None:
    if not data["rows"]:
        console.print("No usage in this period.")
        return
    figures = ["charged_requests", "charged", "rerated_requests", "rerated", "difference"]
    amounts = ("charged", "rerated", "difference")
    rows = [
        {
            **row,
            **{name: "-" if row[name] is None else grouped(row[name]) for name in amounts},
        }
        for row in data["rows"]
    ]
    show_rows(console, "Under another book", [*group_by, *figures, "currency"], rows, [])
    if any(not row["currency"] for row in data["rows"]):
        console.print("unrated: the book does not cover these requests", style="yellow")
