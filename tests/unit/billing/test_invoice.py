from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import InvalidPeriodError, TenantUnknownError
from billing.invoice import Invoice, invoice_of
from billing.period import Period
from billing.price_book_file import parse_price_book
from billing.usage import TenantId, UsageEvent

Events = Callable[..., UsageEvent]
Till = Any
DAY = 86_400 * 10**9


def _invoice(till: Till, tenant: str = "acme", **period: int) -> Invoice:
    invoice: Invoice = till.store.read(lambda c: invoice_of(c, TenantId(tenant), Period(**period)))
    return invoice


def test_lines_are_by_model_class_and_price_version(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    yesterday = now_ns - DAY
    till.record(
        usage_event("a", hit=1000, miss=10, output=0),
        usage_event("b", hit=500, miss=10, output=7),
        usage_event("c", start_time_ns=yesterday, end_time_ns=yesterday, hit=0, miss=3, output=0),
        usage_event("d", model="a-model", hit=0, miss=1, output=0),
        usage_event("e", tenant_id="other"),
    )
    invoice = _invoice(till)
    assert [
        (x.model, x.price_version, x.token_class, x.quantity_tokens) for x in invoice.lines
    ] == [
        ("a-model", "second", "miss", 1),
        ("demo", "first", "miss", 3),
        ("demo", "second", "hit", 1500),
        ("demo", "second", "miss", 20),
        ("demo", "second", "output", 7),
    ]
    assert invoice.total == Decimal("0.000001") + Decimal("0.000003") + Decimal("0.0003") + Decimal(
        "0.00002"
    ) + Decimal("0.000021")
    assert invoice.saved == Decimal("0.0012")
    assert (invoice.request_count, invoice.unrated_request_count) == (4, 0)


def test_each_line_is_rounded_once_and_the_total_is_their_sum(
    till: Till, usage_event: Events
) -> None:
    # 0.2 a million: 7 hit tokens are 0.0000014 and 8 are 0.0000016; a sum rounded late differs.
    till.record(*(usage_event(f"r{i}", hit=1, miss=0, output=0) for i in range(7)))
    till.record(*(usage_event(f"q{i}", hit=1, miss=0, output=0, model="x") for i in range(7)))
    invoice = _invoice(till)
    assert [format(line.amount, "f") for line in invoice.lines] == ["0.000001", "0.000001"]
    assert invoice.total == Decimal("0.000002")


def test_a_tenant_without_events_is_unknown(till: Till, usage_event: Events) -> None:
    till.record(usage_event())
    for tenant in ("nobody", ""):
        with pytest.raises(TenantUnknownError):
            _invoice(till, tenant)


def test_a_quiet_period_is_an_empty_invoice(till: Till, usage_event: Events, now_ns: int) -> None:
    till.record(usage_event())
    invoice = _invoice(till, start_ns=now_ns + 1)
    assert (invoice.lines, invoice.total, invoice.request_count) == ((), 0, 0)


def test_unrated_requests_are_counted_and_in_no_line(till: Till, usage_event: Events) -> None:
    till.record(usage_event("a"), usage_event("b", start_time_ns=0, end_time_ns=1))
    invoice = _invoice(till)
    assert (invoice.request_count, invoice.unrated_request_count) == (2, 1)
    assert sum(line.quantity_tokens for line in invoice.lines) == 210


def test_two_currencies_are_never_added(
    open_till: Callable[..., Till], usage_event: Events, now_ns: int, book_text: str
) -> None:
    at = book_text.rindex("CNY")
    till = open_till(parse_price_book(book_text[:at] + "EUR" + book_text[at + 3 :], "b"))
    change = 1_799_971_200 * 10**9
    till.record(
        usage_event("a"), usage_event("b", start_time_ns=change - 1, end_time_ns=change - 1)
    )
    with pytest.raises(InvalidPeriodError, match="CNY and EUR"):
        _invoice(till)
    assert _invoice(till, end_ns=change).currency == "CNY"
    assert _invoice(till, start_ns=change).currency == "EUR"
