from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import InvalidGroupError, InvalidPeriodError
from billing.period import Period
from billing.report import UsageQuery, UsageRow, usage_rows
from billing.usage import UsageEvent

Events = Callable[..., UsageEvent]
Till = Any

HOUR = 3_600 * 10**9


def _report(till: Till, **query: Any) -> list[UsageRow]:
    rows: list[UsageRow] = till.store.read(lambda c: usage_rows(c, UsageQuery(**query)))
    return rows


@pytest.fixture
def used(till: Till, usage_event: Events, now_ns: int) -> Till:
    def at(name: str, time_ns: int, **changes: Any) -> UsageEvent:
        return usage_event(name, start_time_ns=time_ns, end_time_ns=time_ns, **changes)

    till.record(
        at("a", now_ns, hit=1000, miss=10, output=1),
        at("b", now_ns + HOUR, hit=2000, miss=20, output=2, tenant_id="beta"),
        at("c", now_ns - 24 * HOUR, hit=4000, miss=40, output=4, model="big-1"),
        at("d", 0, hit=8000, miss=80, output=8),
    )
    return till


def test_nothing_recorded_is_an_empty_report(till: Till) -> None:
    assert _report(till) == []


def test_without_groups_there_is_one_row_a_currency(used: Till) -> None:
    unrated, rated = _report(used)
    assert (unrated.currency, unrated.request_count, unrated.amount) == ("", 1, 0)
    assert (unrated.hit, unrated.miss, unrated.output, unrated.saved) == (8000, 80, 8, 0)
    assert (rated.currency, rated.request_count) == ("CNY", 3)
    assert (rated.hit, rated.hit_host, rated.miss, rated.output) == (7000, 7000, 70, 7)
    second = Decimal("3000") * Decimal("0.2") + 30 + 3 * 3
    first = 4000 * Decimal("0.5") + 40 * 4 + 4 * 16
    assert rated.amount == (second + first) / 1_000_000
    assert rated.saved == (3000 * Decimal("0.8") + 4000 * Decimal("3.5")) / 1_000_000


def test_rows_come_by_the_groups_in_their_order(used: Till) -> None:
    rows = _report(used, group_by=("day", "tenant", "model"))
    assert [row.group for row in rows] == [
        ("1970-01-01", "acme", "demo"),
        ("2027-01-14", "acme", "big-1"),
        ("2027-01-15", "acme", "demo"),
        ("2027-01-15", "beta", "demo"),
    ]


def test_hours_are_utc(used: Till) -> None:
    rows = _report(used, group_by=("hour",), tenant_id="beta")
    assert [row.group for row in rows] == [("2027-01-15T09:00Z",)]


def test_a_period_has_its_start_and_not_its_end(used: Till, now_ns: int) -> None:
    def count(start: int | None, end: int | None) -> int:
        return sum(row.request_count for row in _report(used, period=Period(start, end)))

    assert count(None, None) == 4
    assert count(now_ns, None) == 2
    assert count(now_ns + 1, None) == 1
    assert count(None, now_ns) == 2
    assert count(now_ns, now_ns + 1) == 1


def test_parts_of_a_report_add_up_to_the_whole(used: Till) -> None:
    whole = sum(row.amount for row in _report(used))
    for group_by in (("tenant",), ("model", "hour"), ("day",)):
        assert sum(row.amount for row in _report(used, group_by=group_by)) == whole


@pytest.mark.parametrize("group_by", [("week",), ("tenant", "tenant"), ("",)])
def test_an_unknown_or_repeated_group_is_refused(group_by: tuple[str, ...]) -> None:
    with pytest.raises(InvalidGroupError, match="tenant, project, key, model, day, hour"):
        UsageQuery(group_by=group_by)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5)])
def test_a_period_without_a_moment_is_refused(start: int, end: int) -> None:
    with pytest.raises(InvalidPeriodError):
        Period(start, end)
