"""Charges of a period: exact, complete, and nobody else's."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing import charges as room
from billing.charges import Charges, charges_of
from billing.errors import TooManyRowsError
from billing.period import Period
from billing.report import UsageQuery, usage_rows
from billing.usage import UsageEvent
from billing.wire_charges import charge_data, charge_message

Events = Callable[..., UsageEvent]
Till = Any

HOUR = 3_600 * 10**9


def charged(till: Till, *who: str, period: Period | None = None) -> Charges:
    found: Charges = till.store.read(lambda c: charges_of(c, period or Period(), *who))
    return found


@pytest.fixture
def used(till: Till, usage_event: Events, now_ns: int) -> Till:
    def at(name: str, time_ns: int, **changes: Any) -> UsageEvent:
        return usage_event(name, start_time_ns=time_ns, end_time_ns=time_ns, **changes)

    till.record(
        at("a", now_ns, hit=1001, miss=10, output=1),
        at("b", now_ns + HOUR, hit=2000, miss=20, output=0),
        at("c", now_ns - 24 * HOUR, hit=3, miss=40, output=4, model="big-1"),
        at("d", now_ns, hit=7, miss=0, output=0, tenant_id="beta"),
        at("e", 0, hit=8000, miss=80, output=8),
    )
    return till


def test_they_add_up_to_the_report_to_the_last_digit(used: Till) -> None:
    found = charged(used)
    rows = used.store.read(lambda c: usage_rows(c, UsageQuery()))
    assert found.unrated_request_count == 1
    assert sum((each.amount for each in found.rows), Decimal(0)) == sum(
        (row.amount for row in rows), Decimal(0)
    )


def test_a_row_is_of_a_day_and_a_class(used: Till) -> None:
    data = [charge_data(charge_message(each)) for each in charged(used, "acme").rows]
    assert [(row["day"], row["model"], row["token_class"], row["quantity"]) for row in data] == [
        ("2027-01-14", "big-1", "hit", 3),
        ("2027-01-14", "big-1", "miss", 40),
        ("2027-01-14", "big-1", "output", 4),
        ("2027-01-15", "demo", "hit", 3001),
        ("2027-01-15", "demo", "miss", 30),
        ("2027-01-15", "demo", "output", 1),
    ]
    assert (data[3]["unit_price"], data[3]["amount"]) == ("0.2", "0.0006002")
    assert (data[0]["price_book_version"], data[3]["price_book_version"]) == ("first", "second")
    assert {row["project"] for row in data} == {None}


def test_only_those_that_were_asked_for(used: Till, now_ns: int) -> None:
    assert {each.tenant_id for each in charged(used, "beta").rows} == {"beta"}
    day = charged(used, period=Period(now_ns, now_ns + HOUR)).rows
    assert {(each.tenant_id, each.day) for each in day} == {("acme", 20_833), ("beta", 20_833)}
    assert charged(used, "nobody").rows == []


def test_too_many_are_refused(used: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHARGES_MAX", 6)
    with pytest.raises(TooManyRowsError, match="name a tenant or a shorter period"):
        charged(used)
    assert len(charged(used, "acme").rows) == 6
