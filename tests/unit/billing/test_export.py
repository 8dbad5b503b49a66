"""Charges as rows of files: FOCUS' columns, and decimals of any width."""

import io
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pyarrow.parquet
import pytest

from billing.focus import FOCUS_COLUMNS, focus_row
from billing.table_files import ExportError, parquet_bytes


def charge(**more: Any) -> dict[str, Any]:
    return {
        "day": "2026-02-28",
        "tenant": "acme",
        "project": "chat",
        "key": None,
        "model": "large",
        "token_class": "miss",
        "cache_write_ttl_class": "",
        "quantity": 1_234_567,
        "unit_price": "0.3",
        "unit_tokens": 1_000_000,
        "amount": "0.3703701",
        "currency": "CNY",
        "price_book_version": "2026-02",
        "rule": "",
    } | more


def test_a_row_has_every_column_and_what_it_costs_exactly() -> None:
    row = focus_row(charge(), "ACME Cloud")
    assert set(row) == set(FOCUS_COLUMNS)
    assert row["BilledCost"] == row["ListCost"] == row["EffectiveCost"] == "0.3703701"
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == ("1234567", "Tokens")
    assert (row["PricingQuantity"], row["PricingUnit"]) == ("1.234567", "1000000 Tokens")
    assert Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"]) == Decimal("0.3703701")
    assert (row["SubAccountId"], row["SubAccountType"]) == ("chat", "Project")
    assert row["SkuPriceId"] == "2026-02/large/miss"
    assert row["InvoiceId"] is row["ChargeClass"] is row["x_PriceRule"] is None


@pytest.mark.parametrize(
    ("day", "month", "next_month", "next_day"),
    [
        ("2026-02-28", "2026-02-01", "2026-03-01", "2026-03-01"),
        ("2026-12-31", "2026-12-01", "2027-01-01", "2027-01-01"),
        ("2028-02-28", "2028-02-01", "2028-03-01", "2028-02-29"),
        ("2026-01-01", "2026-01-01", "2026-02-01", "2026-01-02"),
    ],
)
def test_periods_end_where_the_next_begin(
    day: str, month: str, next_month: str, next_day: str
) -> None:
    row = focus_row(charge(day=day), "p")
    assert row["ChargePeriodStart"] == f"{day}T00:00:00Z"
    assert row["ChargePeriodEnd"] == f"{next_day}T00:00:00Z"
    assert row["BillingPeriodStart"] == f"{month}T00:00:00Z"
    assert row["BillingPeriodEnd"] == f"{next_month}T00:00:00Z"


def test_requests_and_cache_writes_have_meters_of_their_own() -> None:
    request = focus_row(charge(token_class="request", unit_tokens=1, quantity=7, project=None), "p")
    assert (request["PricingUnit"], request["PricingQuantity"]) == ("Requests", "7")
    assert (request["SubAccountId"], request["SubAccountType"]) == (None, None)
    written = focus_row(charge(token_class="cache_write", cache_write_ttl_class="1h"), "p")
    assert written["SkuId"] == "large/cache_write 1h"
    ruled = focus_row(charge(rule="night: half"), "p")
    assert ruled["SkuPriceId"] == "2026-02/large/miss/night: half"


def test_a_correction_has_an_amount_and_no_price() -> None:
    row = focus_row(
        charge(
            **dict.fromkeys(("quantity", "unit_price", "unit_tokens")),
            token_class="credit",
            amount="-0.5",
            price_book_version="",
            rule="outage",
        ),
        "p",
    )
    assert set(row) == set(FOCUS_COLUMNS)
    assert (row["ChargeClass"], row["BilledCost"]) == ("Correction", "-0.5")
    assert row["ChargeDescription"] == "credit: outage"
    assert row["PricingQuantity"] is row["ListUnitPrice"] is row["SkuPriceId"] is None
    assert row["x_PriceBookVersion"] is None


@pytest.mark.parametrize(
    "amounts",
    [
        ["0", None, "-1.5"],
        ["12345678901234567890.123456789012345678", "0.000000000000000001"],
        ["1" * 40 + "." + "2" * 36],
    ],
)
def test_parquet_keeps_every_digit(amounts: list[str | None]) -> None:
    rows = [{"name": None, "amount": amount} for amount in amounts]
    written = parquet_bytes({"name": str, "amount": Decimal}, rows, {"schema": "x"})
    table = pyarrow.parquet.read_table(io.BytesIO(written))
    read = table.column("amount").to_pylist()
    assert read == [None if amount is None else Decimal(amount) for amount in amounts]
    assert table.column("name").to_pylist() == [None] * len(amounts)


def test_more_digits_than_parquet_holds_are_refused() -> None:
    rows = [{"amount": "1" * 41 + "." + "2" * 36}]
    with pytest.raises(ExportError, match="77 digits and Parquet holds 76"):
        parquet_bytes({"amount": Decimal}, rows, {})


def test_an_empty_file_has_its_columns() -> None:
    written = parquet_bytes(dict(FOCUS_COLUMNS), [], {})
    assert pyarrow.parquet.read_schema(io.BytesIO(written)).names == list(FOCUS_COLUMNS)


def test_without_pyarrow_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from billing.table_files import parquet_bytes\n"
        "try: parquet_bytes({}, [], {})\n"
        "except Exception as error: print(error.reason, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("EXPORT_FAILED Parquet needs pyarrow")
    assert "kvtier[parquet]" in done.stdout
