"""What a table shows where figures are odd."""

import io
from typing import Any

import pytest
from rich.console import Console

from billing.statement import REPORT_FIGURES
from billing.tables import grouped, show_report, show_verification


def _shown(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=200)
    show_report(console, {"rows": rows, "totals": totals}, ("tenant", *REPORT_FIGURES))
    return out.getvalue().splitlines()


def _row(tenant: str, amount: str, currency: str = "CNY", prompt: int = 10) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "request_count": 1,
        "prompt_tokens": prompt,
        "hit_tokens": 0,
        "miss_tokens": prompt,
        "output_tokens": 0,
        "cache_writes": {},
        "hit_rate": 0.0 if prompt else None,
        "amount": amount,
        "corrected": "0",
        "saved": "0",
        "net_saved": "0",
        "storage_token_seconds": {},
        "currency": currency,
    }


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1234567.0001", "1,234,567.0001"), ("-1234", "-1,234"), ("0", "0"), ("0.10", "0.10")],
)
def test_thousands_are_grouped_and_no_digit_is_lost(amount: str, text: str) -> None:
    assert grouped(amount) == text


def test_decimal_points_are_below_each_other() -> None:
    rows = [_row("a", "12.5"), _row("b", "1000.000001"), _row("c", "7")]
    lines = _shown(rows, [_row("", "1019.500001")])
    amounts = ("12.500000", "1,000.000001", "7.000000", "1,019.500001")
    points = {
        line.index(text) + text.index(".") for line in lines for text in amounts if text in line
    }
    assert all(any(text in line for line in lines) for text in amounts)
    assert len(points) == 1


def test_what_has_no_price_or_no_prompt_is_not_shown_as_zero() -> None:
    lines = _shown([_row("a", "0", currency="", prompt=0)], [])
    row = next(line for line in lines if line.strip().startswith("a "))
    assert row.split()[-4:] == ["-", "-", "-", "unrated"]
    assert any("no version of the price book covers" in line for line in lines)


def test_a_tenant_cannot_paint_the_table() -> None:
    assert any("[red]x[/red]" in line for line in _shown([_row("[red]x[/red]", "1")], []))


def test_a_broken_ledger_says_where_and_why() -> None:
    out = io.StringIO()
    show_verification(
        Console(file=out, width=200),
        {
            "verified": False,
            "entries": 12,
            "checkpoints": 0,
            "postings": 40,
            "unrated": 0,
            "refused": 1,
            "head_hash": "ab" * 32,
            "first_broken": 7,
            "problem": "its [model] differs",
        },
    )
    assert "does NOT hold" in out.getvalue()
    assert "position 7: its [model] differs" in out.getvalue()
