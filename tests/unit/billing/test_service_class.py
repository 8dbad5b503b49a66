"""The service class of an event: kept, charged by, and part of what makes it the same event."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.invoice import invoice_of
from billing.meter import RecordStatus
from billing.period import Period
from billing.price_book_file import parse_price_book
from billing.report import UsageQuery, usage_rows
from billing.usage import Refusal, TenantId, UsageEvent, event_from_text, event_text, refusal_of
from billing.wire import submission_of
from billing.wire_event import event_message
from tests.unit.billing.price_books import HEAD, PRICE

Events = Callable[..., UsageEvent]
BATCH = '[[versions.prices.classes]]\nclass = "batch"\ntimes = "0.5"\n'
MILLION = {"hit": 0, "miss": 1_000_000, "output": 0}


@pytest.fixture
def classed(open_till: Any) -> Any:
    return open_till(parse_price_book(HEAD + PRICE + BATCH, "b"))


def test_it_survives_text_and_wire_and_has_no_key_where_nobody_said_it(
    usage_event: Events,
) -> None:
    event = usage_event(service_class="batch", session_id="s")
    assert '"schema_version":1,"service_class":"batch","session_id":"s",' in event_text(event)
    assert event_from_text(event_text(event)) == event
    assert submission_of(event_message(event)).event == event
    assert "service_class" not in event_text(usage_event())


def test_each_class_is_charged_by_its_layer_and_unknown_ones_by_the_base(
    classed: Any, usage_event: Events
) -> None:
    classed.record(
        usage_event("a", **MILLION),
        usage_event("b", service_class="batch", **MILLION),
        usage_event("c", service_class="other", **MILLION),
        usage_event("d", service_class="", **MILLION),
    )
    invoice = classed.store.read(lambda c: invoice_of(c, TenantId("acme"), Period()))
    assert [(x.rule, x.quantity_tokens, x.amount) for x in invoice.lines] == [
        ("", 3_000_000, 3),
        ("class batch", 1_000_000, Decimal("0.5")),
    ]
    (row,) = classed.store.read(lambda c: usage_rows(c, UsageQuery()))
    assert (row.amount, row.request_count) == (Decimal("3.5"), 4)
    assert classed.verify().problem == ""


def test_another_class_is_another_event(classed: Any, usage_event: Events) -> None:
    (first,) = classed.record(usage_event("a", **MILLION))
    (again,) = classed.record(usage_event("a", service_class="batch", **MILLION))
    assert (first.status, again.status) == (RecordStatus.ACCEPTED, RecordStatus.CONFLICT)
    same = usage_event("b", service_class="batch", **MILLION)
    assert [classed.record(same)[0].status for _ in range(2)] == [
        RecordStatus.ACCEPTED,
        RecordStatus.DUPLICATE,
    ]


def test_a_class_that_is_no_text_is_refused(usage_event: Events, now_ns: int) -> None:
    for name in ("a\x00", "x" * 1025):
        assert refusal_of(usage_event(service_class=name), now_ns) is Refusal.INVALID_TEXT
