"""Invoices under terms, from a real ledger."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import InvalidPeriodError
from billing.invoice import Invoice, invoice_of
from billing.period import Period
from billing.price_book_file import parse_price_book
from billing.statement import invoice_data, invoice_rows
from billing.terms_file import parse_terms
from billing.usage import TenantId, UsageEvent
from billing.wire import invoice_message

Events = Callable[..., UsageEvent]
DAY = 86_400 * 10**9
DECEMBER = 1_796_083_200 * 10**9
JANUARY = DECEMBER + 31 * DAY
FEBRUARY = JANUARY + 31 * DAY

TERMS = """format = 1
[[terms]]
name = "contract"
tenant = "ac*"
from = 2026-12-01T00:00:00Z
currency = "CNY"
[[terms.allowances]]
name = "free"
meters = ["miss"]
quantity = 1000000
[[terms.discounts]]
name = "volume"
times = "0.5"
[[terms.credits]]
name = "welcome"
amount = "10"
from = 2026-12-10T00:00:00Z
until = 2027-01-02T00:00:00Z
"""


def invoice(till: Any, start: int, end: int, terms: str = TERMS, tenant: str = "acme") -> Invoice:
    sheet = parse_terms(terms, "t")
    period = Period(start, end)
    found: Invoice = till.store.read(lambda c: invoice_of(c, TenantId(tenant), period, sheet))
    return found


@pytest.fixture
def used(till: Any, usage_event: Events) -> Any:
    """In December at 1 a million, in January of it too; both before the second version."""
    for number, end in enumerate((DECEMBER, DECEMBER + DAY, JANUARY + DAY)):
        times = {"start_time_ns": end, "end_time_ns": end}
        till.record(usage_event(f"r{number}", hit=0, miss=8_000_000, output=0, **times))
    return till


def lines(found: Invoice) -> list[tuple[str, str]]:
    return [(x.name, format(x.amount, "f")) for x in found.adjustments]


def test_terms_are_lines_of_a_months_invoice_and_it_adds_up(used: Any) -> None:
    found = invoice(used, DECEMBER, JANUARY)
    assert [line.amount for line in found.lines] == [16]
    assert lines(found) == [
        ("free", "-1.000000"),
        ("volume", "-7.500000"),
        ("welcome", "-7.500000"),
    ]
    assert found.total == 0
    assert [(x.credit.name, x.left) for x in found.credits] == [("welcome", Decimal("2.5"))]


def test_the_rest_of_a_credit_follows_from_the_months_before(used: Any) -> None:
    found = invoice(used, JANUARY, FEBRUARY)
    assert lines(found)[-1] == ("welcome", "-2.500000")
    assert found.total == 1
    assert [x.left for x in found.credits] == [0]
    late = TERMS.replace("2027-01-02", "2027-01-01")
    assert lines(invoice(used, JANUARY, FEBRUARY, late))[-1][0] == "volume"


def test_a_credit_goes_on_under_later_terms(used: Any) -> None:
    after = TERMS.split("\n", 1)[1].replace("2026-12-01", "2027-01-01")
    found = invoice(used, JANUARY, FEBRUARY, TERMS + after.replace('"0.5"', '"0.75"'))
    assert lines(found)[1:] == [("volume", "-1.750000"), ("welcome", "-2.500000")]
    new = after.replace('"welcome"', '"another"')
    assert lines(invoice(used, JANUARY, FEBRUARY, TERMS + new))[-1] == ("another", "-3.500000")


def test_other_periods_and_other_tenants_have_list_amounts(used: Any, usage_event: Events) -> None:
    used.record(usage_event("b", tenant_id="beta"))
    for found in (
        invoice(used, DECEMBER, JANUARY + 1),
        invoice(used, DECEMBER + DAY, JANUARY),
        invoice(used, JANUARY, FEBRUARY, tenant="beta"),
    ):
        assert (found.terms, found.adjustments, found.credits) == (None, (), ())
        assert found.total == sum(line.amount for line in found.lines) > 0


def test_a_quiet_month_is_its_minimum_charge(used: Any) -> None:
    minimum = TERMS.replace('"CNY"\n', '"CNY"\nminimum_charge = "20"\n')
    found = invoice(used, FEBRUARY, FEBRUARY + 28 * DAY, minimum)
    assert (found.currency, found.total, found.lines) == ("CNY", 20, ())
    assert lines(found) == [("contract", "20.000000")]


def test_terms_in_another_currency_are_refused(used: Any) -> None:
    with pytest.raises(InvalidPeriodError, match="in EUR and prices in CNY"):
        invoice(used, DECEMBER, JANUARY, TERMS.replace("CNY", "EUR"))


def test_what_is_shown_adds_up_and_names_the_terms(used: Any) -> None:
    found = invoice(used, JANUARY, FEBRUARY)
    data = invoice_data(invoice_message(found))
    assert sum(Decimal(row["amount"]) for row in invoice_rows(data)) == Decimal(data["total"]) == 1
    assert found.terms is not None
    assert (data["terms"], data["terms_hash"]) == ("contract", found.terms.id)
    assert data["credits"] == [{"name": "welcome", "left": "0", "expires": "2027-01-02T00:00:00Z"}]
    assert [row["kind"] for row in data["adjustments"]] == ["allowance", "discount", "credit"]


def test_months_that_are_rated_event_by_event_settle_as_well(
    open_till: Any, usage_event: Events, book_text: str
) -> None:
    step = '[[versions.prices.steps]]\nprompt_above = 10\ntimes = "2"\n'
    text = book_text.replace("format = 1", "format = 2").replace(
        'output = "2"\n', f'output = "2"\n{step}'
    )
    till = open_till(parse_price_book(text, "b"))
    till.record(
        usage_event("a", hit=0, miss=3_000_000, output=0, start_time_ns=0, end_time_ns=DECEMBER)
    )
    found = invoice(till, DECEMBER, JANUARY)
    assert [(line.rule, line.amount) for line in found.lines] == [("prompt over 10", 6)]
    assert lines(found)[:2] == [("free", "-2.000000"), ("volume", "-2.000000")]
    assert till.verify().problem == ""
