"""Corrections: new postings that refer to an entry, once per id, shown where they were made."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import select

from billing.charges import charges_of
from billing.correction import CorrectionAsk, CorrectionKind
from billing.errors import CorrectionConflictError, CorrectionRefusedError, EventUnknownError
from billing.invoice import Invoice, invoice_of
from billing.ledger_lookup import found_entries
from billing.ledger_schema import postings
from billing.meter import RecordStatus
from billing.period import Period
from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.report import UsageQuery, UsageRow, usage_rows
from billing.statement import invoice_data, invoice_rows
from billing.tables import show_invoice
from billing.usage import TenantId, UsageEvent
from billing.wire import invoice_message
from billing.wire_charges import charge_data, correction_charge

Events = Callable[..., UsageEvent]
Till = Any
DAY = 86_400 * 10**9

OWED = Decimal("0.0001276")
"""What `usage_event()` costs: 128 hits at 0.2, 72 misses at 1 and 10 tokens of output at 3."""


def ask(kind: str, request_id: str = "r1", **changes: Any) -> CorrectionAsk:
    fields: dict[str, Any] = {
        "correction_id": f"c-{kind}",
        "reason": "a stalled stream",
        "operator": "ann",
    }
    if kind in ("credit", "charge"):
        fields["amount"] = Decimal("0.0001")
    return CorrectionAsk(kind=CorrectionKind(kind), request_id=request_id, **(fields | changes))


def invoice(till: Till, period: Period | None = None) -> Invoice:
    found: Invoice = till.store.read(lambda c: invoice_of(c, TenantId("acme"), period or Period()))
    return found


def report(till: Till, **query: Any) -> list[UsageRow]:
    rows: list[UsageRow] = till.store.read(lambda c: usage_rows(c, UsageQuery(**query)))
    return rows


@pytest.mark.parametrize(
    ("kind", "amount"),
    [("credit", "-0.0001"), ("charge", "0.0001"), ("reverse", "-0.0001276")],
)
def test_a_correction_changes_what_is_owed_and_nothing_else(
    till: Till, usage_event: Events, kind: str, amount: str
) -> None:
    till.record(usage_event("r1"), usage_event("r2"))
    made = till.ledger.correct(ask(kind)).result(30)
    assert (made.position, made.correction.amount) == (3, Decimal(amount))
    (row,) = report(till)
    assert (row.request_count, row.miss) == (2, 144)
    assert (row.corrected, row.amount) == (Decimal(amount), 2 * OWED + Decimal(amount))
    lines = till.store.read(lambda c: c.execute(select(postings)).all())
    assert sum(Decimal(line.amount) for line in lines) == 0
    owed = [Decimal(x.amount) for x in lines if x.account == "receivable/acme"]
    assert sum(owed) == row.amount
    shown = invoice(till)
    assert (shown.request_count, shown.unrated_request_count) == (2, 0)
    assert [each.correction for each in shown.corrections] == [made.correction]
    assert till.verify().problem == ""
    (entry,) = till.store.read(lambda c: found_entries(c, "r1"))
    assert entry.amount == OWED
    assert [each.correction for each in entry.corrections] == [made.correction]


def test_the_same_correction_happens_once_and_another_of_its_id_is_refused(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("r1"))
    first = till.ledger.correct(ask("credit")).result(30)
    again = till.ledger.correct(ask("credit", operator="bob", currency="CNY")).result(30)
    assert (first.again, again.again, again.position) == (False, True, first.position)
    for other in ({"amount": Decimal("0.00002")}, {"reason": "x"}, {"currency": "USD"}):
        with pytest.raises(CorrectionConflictError):
            till.ledger.correct(ask("credit", **other)).result(30)
    assert till.ledger.head.position == 2


def test_nobody_gets_back_more_than_is_owed(till: Till, usage_event: Events) -> None:
    till.record(usage_event("r1"))
    till.ledger.correct(ask("credit")).result(30)
    with pytest.raises(CorrectionRefusedError, match=r"owes 0\.0000276 CNY"):
        till.ledger.correct(ask("credit", correction_id="more")).result(30)
    till.ledger.correct(ask("charge")).result(30)
    till.ledger.correct(ask("credit", correction_id="more")).result(30)
    nothing = till.ledger.correct(ask("reverse")).result(30)
    assert nothing.correction.amount == -(OWED - Decimal("0.0001"))
    empty = till.ledger.correct(ask("reverse", correction_id="again")).result(30)
    assert empty.correction.amount == 0
    assert report(till)[0].amount == 0
    assert till.verify().problem == ""


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (ask("credit", "nobody"), EventUnknownError),
        (ask("credit", "correction/c-charge"), EventUnknownError),
        (ask("credit", amount=None), CorrectionRefusedError),
        (ask("credit", amount=Decimal(0)), CorrectionRefusedError),
        (ask("credit", currency="USD"), CorrectionRefusedError),
        (ask("reverse", amount=Decimal(1)), CorrectionRefusedError),
        (ask("credit", reason=""), CorrectionRefusedError),
        (ask("credit", operator="a\nb"), CorrectionRefusedError),
        (ask("credit", correction_id=""), CorrectionRefusedError),
        (ask("settle"), CorrectionRefusedError),
        (ask("settle", "old"), CorrectionRefusedError),
        (ask("credit", "old"), CorrectionRefusedError),
    ],
)
def test_what_does_not_fit_is_refused_and_writes_nothing(
    till: Till, usage_event: Events, asked: CorrectionAsk, error: type[Exception]
) -> None:
    till.record(usage_event("r1"), usage_event("old", start_time_ns=0, end_time_ns=1))
    till.ledger.correct(ask("charge")).result(30)
    with pytest.raises(error):
        till.ledger.correct(asked).result(30)
    assert till.ledger.head.position == 3
    assert till.verify().problem == ""
    assert till.record(usage_event("r3"))[0].position == 4


def test_an_unrated_event_is_settled_by_a_book_that_covers_it(
    open_till: Any, usage_event: Events, book: PriceBook, book_text: str
) -> None:
    till = open_till()
    till.record(usage_event("old", start_time_ns=DAY, end_time_ns=2 * DAY), usage_event("r1"))
    assert invoice(till).unrated_request_count == 1
    till.close()
    earlier = book_text.replace("format = 1", "", 1).replace(
        "[[versions]]", EARLIER + "[[versions]]", 1
    )
    till = open_till(parse_price_book(earlier, "test"))
    made = till.ledger.correct(ask("settle", "old")).result(30)
    assert made.correction.amount == Decimal("0.00021")
    assert till.verify().problem == ""
    assert invoice(till).unrated_request_count == 0
    (unrated, rated) = report(till)
    assert (unrated.request_count, rated.amount) == (1, OWED + Decimal("0.00021"))
    with pytest.raises(CorrectionRefusedError):
        till.ledger.correct(ask("settle", "old", correction_id="twice")).result(30)
    back = till.ledger.correct(ask("reverse", "old")).result(30)
    assert back.correction.amount == -Decimal("0.00021")
    assert till.verify().problem == ""
    # A correction of what was settled is shown in the settlement's decimals.
    lines = [each.line_amount for each in invoice(till).corrections]
    assert lines == [Decimal("0.000210"), Decimal("-0.000210")]
    till.close()
    assert open_till(parse_price_book(earlier, "test")).verify().problem == ""


EARLIER = """format = 1
[[versions]]
name = "ancient"
effective_time = 1970-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "*"
hit = "1"
miss = "1"
output = "1"
"""


def test_an_invoice_that_was_sent_stays_and_the_correction_is_on_the_next(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    ended = {"start_time_ns": now_ns - 2 * DAY, "end_time_ns": now_ns - DAY}
    till.record(usage_event("r1", **ended))
    before, since = Period(None, now_ns), Period(now_ns, None)
    sent = invoice(till, before)
    till.ledger.correct(ask("credit", amount=Decimal("0.00001"))).result(30)
    assert invoice(till, before) == sent
    following = invoice(till, since)
    assert (following.lines, following.currency) == ((), "CNY")
    assert following.total == Decimal("-0.000010")
    rows = report(till, group_by=("day", "tenant", "model"))
    assert [(row.group[0], row.request_count) for row in rows] == [
        ("2027-01-14", 1),
        ("2027-01-15", 0),
    ]


def test_lines_and_corrections_add_up_to_the_total_as_printed(
    till: Till, usage_event: Events, capsys: Any
) -> None:
    till.record(*(usage_event(f"r{number}") for number in range(7)))
    till.ledger.correct(ask("credit", "r1", amount=Decimal("0.00001234567"))).result(30)
    till.ledger.correct(ask("reverse", "r2")).result(30)
    data = invoice_data(invoice_message(invoice(till)))
    amounts = [line["amount"] for line in invoice_rows(data)]
    assert sum(map(Decimal, amounts)) == Decimal(data["total"])
    assert [each["kind"] for each in data["corrections"]] == ["credit", "reverse"]
    show_invoice(Console(width=140), data)
    printed = capsys.readouterr().out
    for words in ("-0.000012", "credit of r1: a stalled stream", "c-reverse", data["total"]):
        assert words in printed


def test_charges_have_corrections_and_add_up_to_the_report(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    till.record(*(usage_event(f"r{number}") for number in range(3)))
    till.ledger.correct(ask("credit", "r1", amount=Decimal("0.00001234567"))).result(30)
    found = till.store.read(lambda c: charges_of(c, Period()))
    (correction,) = (charge_data(correction_charge(each)) for each in found.corrections)
    assert (correction["token_class"], correction["amount"]) == ("credit", "-0.00001234567")
    assert correction["quantity"] is correction["unit_price"] is None
    amounts = [each.amount for each in found.rows] + [Decimal(correction["amount"])]
    assert sum(amounts) == sum(row.amount for row in report(till))


@pytest.mark.parametrize(
    "change",
    [
        "corrects = 2",
        "tenant_id = 'beta'",
        "model = 'other'",
        "kind = 'usage'",
        "event = REPLACE(event, '0.0001', '0.0002')",
        "event = REPLACE(event, 'stalled', 'staller')",
        "end_time_ns = end_time_ns + 1",
        "recorded_time_ns = recorded_time_ns + 1",
        "request_id = 'correction/other'",
    ],
)
def test_a_changed_correction_is_found_where_it_is(
    till: Till, usage_event: Events, change: str
) -> None:
    till.record(usage_event("r1"), usage_event("r2"))
    till.ledger.correct(ask("credit")).result(30)
    till.record(usage_event("r3"))
    till.alter(f"UPDATE entries SET {change} WHERE position = 3")
    assert till.verify().broken_position == 3


def test_no_event_takes_the_name_of_a_correction(till: Till, usage_event: Events) -> None:
    (refused,) = till.record(usage_event("correction/c-credit"))
    assert (refused.status, refused.reason) == (RecordStatus.REJECTED, "RESERVED_ID")
