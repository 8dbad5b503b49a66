"""What becomes of an event that is late, early, out of order, there already, contradicting, or from
the future: each has one fate, and the ledger is the same whatever order they came in.
"""

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from billing.ledger_schema import refused_events
from billing.meter import Outcome, RecordStatus
from billing.report import UsageQuery, usage_rows
from billing.usage import FUTURE_NS_MAX, UsageEvent

Events = Callable[..., UsageEvent]
Till = Any
DAY = 86_400 * 10**9
YEAR = 365 * DAY


def _fate(outcome: Outcome) -> tuple[RecordStatus, str, int]:
    return outcome.status, outcome.reason, outcome.position


def _at(usage_event: Events, name: str, end_ns: int, **changes: Any) -> UsageEvent:
    return usage_event(name, start_time_ns=end_ns - 10**9, end_time_ns=end_ns, **changes)


def test_a_late_event_is_taken_at_the_price_of_its_own_time(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    till.record(_at(usage_event, "today", now_ns))
    (late,) = till.record(_at(usage_event, "late", now_ns - YEAR))
    assert _fate(late) == (RecordStatus.ACCEPTED, "", 2)
    rows = till.store.read(lambda c: usage_rows(c, UsageQuery(group_by=("day",))))
    assert [(row.group, row.amount) for row in rows] == [
        (("2026-01-15",), Decimal("0.0001048")),  # the version of then
        (("2027-01-15",), Decimal("0.0001276")),
    ]


def test_an_early_event_is_taken_up_to_a_day_ahead_of_the_clock(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    (early,) = till.record(_at(usage_event, "early", now_ns + FUTURE_NS_MAX))
    assert _fate(early) == (RecordStatus.ACCEPTED, "", 1)


def test_an_event_of_the_future_is_kept_aside_and_taken_when_its_time_has_come(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    event = _at(usage_event, "future", now_ns + FUTURE_NS_MAX + 1)
    (refused,) = till.record(event)
    assert _fate(refused) == (RecordStatus.REJECTED, "FUTURE", 0)
    kept = till.store.read(lambda c: c.execute(select(refused_events)).one())
    assert (kept.request_id, kept.wire) == ("future", repr(event).encode())
    till.clock.now_ns += 1
    (taken,) = till.record(event)
    assert _fate(taken) == (RecordStatus.ACCEPTED, "", 1)


def test_a_duplicate_is_a_duplicate_a_year_later_too(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    event = _at(usage_event, "a", now_ns + FUTURE_NS_MAX)
    till.record(event)
    for years in (-1, 1):
        till.clock.now_ns = now_ns + years * YEAR
        (again,) = till.record(event)
        assert _fate(again) == (RecordStatus.DUPLICATE, "", 1)


def test_what_contradicts_is_kept_aside_and_the_first_stands(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    first = _at(usage_event, "a", now_ns)
    others = [
        _at(usage_event, "a", now_ns - 1),
        _at(usage_event, "a", now_ns, output=11),
        _at(usage_event, "a", now_ns, tenant_id="beta"),
        _at(usage_event, "a", now_ns, model="big-1"),
    ]
    outcomes = till.record(others[0], first, *others[1:])
    assert [_fate(each) for each in outcomes] == [
        (RecordStatus.ACCEPTED, "", 1),
        *[(RecordStatus.CONFLICT, "OTHER_CONTENT", 0)] * 4,
    ]
    (again,) = till.record(others[0])
    assert _fate(again) == (RecordStatus.DUPLICATE, "", 1)
    found = till.verify()
    assert (found.problem, found.entry_count, found.refused_count) == ("", 1, 4)


def test_any_order_with_any_repetition_gives_the_same_figures(
    open_till: Any, usage_event: Events, now_ns: int
) -> None:
    till = open_till()
    chance = random.Random(5)
    events = [
        _at(usage_event, f"r{n}", now_ns - n * DAY // 3, hit=n * 64, miss=n + 1, output=n)
        for n in range(40)
    ]
    told = [*events, *chance.choices(events, k=60)]
    chance.shuffle(told)
    statuses: list[RecordStatus] = []
    while told:
        batch, told = told[: (size := chance.randint(1, 9))], told[size:]
        statuses += [outcome.status for outcome in till.record(*batch)]
    assert statuses.count(RecordStatus.ACCEPTED) == 40
    assert statuses.count(RecordStatus.DUPLICATE) == 60
    rows = till.store.read(lambda c: usage_rows(c, UsageQuery(group_by=("day",))))
    assert sum(row.request_count for row in rows) == 40
    assert sum(row.hit for row in rows) == sum(event.tokens.hit for event in events)
    assert sum(row.miss for row in rows) == sum(event.tokens.miss for event in events)
    assert till.verify().problem == ""
