"""Tables on a narrow screen and in a pipe: every digit is there, and no colour."""

import io
from typing import Any

import pytest
from rich.console import Console

from billing.statement import REPORT_FIGURES
from billing.tables import show_invoice, show_report

FIGURES: dict[str, Any] = {
    "request_count": 1_234_567,
    "prompt_tokens": 9_876_543_210,
    "hit_tokens": 9_000_000_000,
    "miss_tokens": 876_543_210,
    "output_tokens": 123_456_789,
    "cache_writes": {"": 123_456_789, "1h": 987_654_321},
    "corrected": "0",
    "corrections": [],
    "hit_rate": 0.911249,
    "amount": "1234567.000000123",
    "saved": "0.1",
    "net_saved": "-12345.678901",
    "storage_token_seconds": {"host": "9876543210.123", "ssd": "98765432100.456"},
    "currency": "CNY",
}
REPORT = {
    "rows": [{"tenant": "a-tenant-with-a-long-name", "model": "model-of-70b", **FIGURES}],
    "totals": [FIGURES],
}
INVOICE = {
    "tenant": "acme",
    "period": {"start": None, "end": "2026-12-01T00:00:00Z"},
    "currency": "CNY",
    "total": "12345.000096",
    "saved": "0.1",
    "net_saved": "-12345.678901",
    "request_count": 8,
    "unrated_request_count": 1,
    "cache_writes": {"": 123_456_789, "1h": 987_654_321},
    "corrected": "0",
    "corrections": [],
    "lines": [
        {
            "model": "demo-model",
            "token_class": "hit",
            "cache_write_ttl_class": "",
            "quantity_tokens": 123_456_789_012,
            "unit_price": "0.1",
            "unit_tokens": 1_000_000,
            "amount": "12345.000096",
            "price_book_version": "example-2024-08",
            "rule": "",
        }
    ],
    "terms": "",
    "adjustments": [],
    "credits": [],
}
SETTLED = INVOICE | {
    "terms": "contract 17",
    "adjustments": [
        {"kind": "allowance", "name": "free", "quantity": 9_876_543_210, "amount": "-987.654321"},
        {"kind": "credit", "name": "welcome", "quantity": 0, "amount": "-11357.345775"},
    ],
    "credits": [{"name": "welcome", "left": "88642.654225", "expires": "2027-01-01T00:00:00Z"}],
}


def printed(show: Any, width: int, *arguments: Any) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width), *arguments)
    text = out.getvalue()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_digit_of_a_report_is_cut_at_any_width(width: int) -> None:
    text = printed(show_report, width, REPORT, ("tenant", "model", *REPORT_FIGURES))
    for word in (
        "a-tenant-with-a-long-name",
        "model-of-70b",
        "1,234,567",
        "9,876,543,210",
        "9,000,000,000",
        "876,543,210",
        "123,456,789",
        "91.1%",
        "1,234,567.000000123",
        "0.1",
        "CNY",
        "total",
    ):
        assert word in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_digit_of_an_invoice_is_cut_at_any_width(width: int) -> None:
    text = printed(show_invoice, width, INVOICE)
    for word in ("demo-model", "123,456,789,012", "12,345.000096", "example-2024-08", "1,000,000"):
        assert word in text


def test_an_ordinary_invoice_is_a_table_on_eighty_columns() -> None:
    line = {
        **INVOICE["lines"][0],  # type: ignore[index]
        "token_class": "output",
        "quantity_tokens": 1_234_567,
        "amount": "0.000096",
    }
    text = printed(show_invoice, 80, INVOICE | {"lines": [line], "total": "0.000096"})
    (row,) = [row for row in text.splitlines() if "demo-model" in row]
    assert row.split() == [
        "demo-model",
        "output",
        "1,234,567",
        "0.1",
        "1,000,000",
        "0.000096",
        "example-2024-08",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_digit_of_what_terms_add_is_cut_at_any_width(width: int) -> None:
    text = printed(show_invoice, width, SETTLED)
    for digits in ("-987.654321", "9,876,543,210", "-11,357.345775", "12,345.000096"):
        assert digits in text
    assert "88,642.654225" in text.replace("\n", " ")
