"""A receipt for people and programs: what it says, and what checking it found. Pure, but for
printing to the console it is given.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from billing.receipt_check import Report, Result
from billing.tables import grouped
from billing.usage import TIERS

__all__ = ["receipt_data", "report_data", "show_receipt", "show_report"]

_SHORT = 16
"""Digits of a hash on a screen; JSON and the file have all of them."""


def receipt_data(receipt: Mapping[str, Any], *, sealed: bool) -> dict[str, Any]:
    """What it says, with keys as elsewhere in kvtier; null is what nobody said."""
    event, entry = receipt["event"], receipt["entry"]
    versions = receipt["price_versions"]
    return {
        "request_id": event["request_id"],
        "client_request_id": event["client_request_id"],
        "tenant": event["tenant_id"],
        "project": event.get("project_id"),
        "user": event.get("user_id"),
        "model": event["model"],
        "start_time": _time(event["start_time_ns"]),
        "end_time": _time(event["end_time_ns"]),
        "end_reason": event["end_reason"].upper(),
        "prompt_tokens": event["prompt"],
        "hit_tokens": event["hit"],
        "hit_tokens_by_tier": {tier: event[f"hit_{tier}"] for tier in TIERS},
        "miss_tokens": event["miss"],
        "output_tokens": event["output"],
        "price_book_version": versions[0]["name"] if entry["price"] is not None else "",
        "price_book_hash": entry["price"],
        "lines": receipt["lines"],
        "amount": receipt["amount"],
        "currency": receipt["currency"],
        "corrections": [
            {**each["correction"], "position": each["position"]} for each in receipt["corrections"]
        ],
        "owed": receipt["owed"],
        "ledger": receipt["ledger"],
        "position": entry["position"],
        "entry_hash": entry["hash"],
        "recorded_time": _time(entry["recorded_time_ns"]),
        "issued_time": _time(receipt["issued_time_ns"]),
        "key": receipt["key"],
        "sealed": sealed,
        "block_tokens": event["proof"]["block_tokens"] if "proof" in event else None,
        "namespace_mark": event["proof"]["namespace_mark"] if "proof" in event else None,
        "runs": list(_runs(event)) if "proof" in event else None,
    }


def report_data(report: Report) -> dict[str, Any]:
    """`verified`, and each check; `result` is "holds", "failed" or "skipped"."""
    receipt = report.receipt or {}
    event = receipt.get("event")
    entry = receipt.get("entry")
    return {
        "verified": report.verified,
        "request_id": event.get("request_id") if isinstance(event, dict) else None,
        "position": entry.get("position") if isinstance(entry, dict) else None,
        "key": receipt.get("key"),
        "key_trusted": report.trusted,
        "sealed": report.sealed,
        "checks": [
            {
                "check": each.check,
                "result": each.result.value,
                "where": each.where,
                "note": each.note,
            }
            for each in report.findings
        ],
    }


def show_receipt(console: Console, data: Mapping[str, Any], *, blocks: bool = False) -> None:
    """`blocks`: a row for each block instead of each run."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(data):
        table.add_row(label, escape(value))
    console.print(table)
    console.print()
    console.print(_lines_table(data))
    total = f"{grouped(data['amount'])} {data['currency']}"
    console.print(
        f"amount  {total if data['currency'] else 'no price covered it'}", highlight=False
    )
    for each in data["corrections"]:
        console.print(
            f"{each['kind']}  {grouped(each['amount'])} {each['currency']}"
            f" (position {each['position']:,}: {each['reason']})",
            highlight=False,
            markup=False,
        )
    if data["corrections"]:
        console.print(f"owed  {grouped(data['owed'])} {data['currency']}", highlight=False)
    console.print()
    if data["runs"] is None:
        console.print("no blocks: the event proves nothing of its prompt", highlight=False)
        return
    console.print(_blocks_table(data, blocks))


def show_report(console: Console, report: Report) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("", overflow="fold")
    styles = {Result.HOLDS: "green", Result.FAILED: "bold red", Result.SKIPPED: "dim"}
    for each in report.findings:
        result = "FAILED" if each.result is Result.FAILED else each.result.value
        style = styles[each.result]
        table.add_row(
            each.check, f"[{style}]{result}[/{style}]", escape(each.where), escape(each.note)
        )
    console.print(table)
    if report.verified:
        own_word = "" if report.trusted else " Who signed it is its own word: give --public-key."
        console.print(f"The receipt holds.{own_word}", style="green", highlight=False)
    else:
        console.print("The receipt does NOT hold.", style="bold red", highlight=False)


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "request", data["request_id"]
    for name in ("client_request_id", "tenant", "project", "user", "model"):
        if data[name]:
            yield name.replace("_", " "), data[name]
    yield "ended", f"{data['end_time']}, {data['end_reason']}"
    hits = ", ".join(f"{tier} {n:,}" for tier, n in data["hit_tokens_by_tier"].items() if n)
    yield "prompt tokens", f"{data['prompt_tokens']:,}"
    yield "hit tokens", f"{data['hit_tokens']:,}" + (f" ({hits})" if hits else "")
    yield "miss tokens", f"{data['miss_tokens']:,}"
    yield "output tokens", f"{data['output_tokens']:,}"
    if data["price_book_hash"] is not None:
        yield "prices", f"{data['price_book_version']} ({data['price_book_hash'][:_SHORT]})"
    yield "ledger", f"position {data['position']:,} of {data['ledger']}"
    yield "entry hash", data["entry_hash"]
    yield "issued", f"{data['issued_time']}, signed by key {data['key']}"
    yield "digests", "sealed: nobody can test them" if data["sealed"] else "can be opened"


def _lines_table(data: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for heading in ("quantity", "price", "per", "amount"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("rule")
    for line in data["lines"]:
        table.add_row(
            f"{line['token_class']} {line['ttl_class']}".strip(),
            f"{line['quantity']:,}",
            grouped(line["price"]),
            f"{line['per']:,}",
            grouped(line["amount"]),
            escape(line["rule"]),
        )
    return table


def _blocks_table(data: Mapping[str, Any], each_block: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("blocks", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("class", "from", "digest of all tokens up to there"):
        table.add_column(heading, no_wrap=True)
    size, prompt = data["block_tokens"], data["prompt_tokens"]
    for run in data["runs"]:
        step = 1 if each_block else run["last_block"] - run["first_block"] + 1
        for first in range(run["first_block"], run["last_block"] + 1, step):
            last = first + step - 1
            end = min((last + 1) * size, prompt)
            table.add_row(
                f"{first:,}" if first == last else f"{first:,}-{last:,}",
                f"{first * size + 1:,}-{end:,}",
                run["class"],
                ", ".join(_places(run)),
                run["digest"][:_SHORT] if last == run["last_block"] else "",
            )
    return table


def _places(run: Mapping[str, Any]) -> list[str]:
    places = run["blocks_by_place"]
    return [f"{place} {n:,}" if len(places) > 1 else place for place, n in places.items()]


def _runs(event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    first = 0
    for run in event["proof"]["runs"]:
        places = {place: run[place] for place in (*TIERS, "computed") if place in run}
        count = sum(places.values())
        classes = {"miss" if place == "computed" else "hit" for place in places}
        yield {
            "first_block": first,
            "last_block": first + count - 1,
            "class": " and ".join(sorted(classes)),
            "blocks_by_place": places,
            "digest": run["digest"],
        }
        first += count


def _time(time_ns: int) -> str:
    seconds, ns = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"
