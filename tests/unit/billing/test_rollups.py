"""Rollups: the same figures as the entries', whatever the period's ends, and held to them."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from billing.period import HOUR_NS, Period
from billing.report import UsageQuery, usage_rows
from billing.usage import UsageEvent

Events = Callable[..., UsageEvent]
Till = Any
MINUTE = 60 * 10**9


@pytest.fixture
def used(till: Till, usage_event: Events, now_ns: int) -> list[UsageEvent]:
    """Six hours of events, some on the very edge of one."""
    chance = random.Random(3)
    edges = [now_ns + hour * HOUR_NS + nudge for hour in range(6) for nudge in (-1, 0, 1)]
    times = edges + [now_ns + chance.randrange(6 * 60) * MINUTE for _ in range(40)]
    events = [
        usage_event(
            f"r{number}",
            start_time_ns=time,
            end_time_ns=time,
            hit=number * 64,
            miss=number + 1,
            tenant_id=chance.choice(["acme", "beta"]),
            project_id=chance.choice([None, "", "search"]),
            cache_write=number % 3,
            cache_write_ttl_class=chance.choice(["", "1h"]) if number % 3 else "",
        )
        for number, time in enumerate(times)
    ]
    chance.shuffle(events)
    while events_left := events[len(till.heard.commits) * 7 :][:7]:
        till.record(*events_left)
    return events


def test_any_period_adds_up_to_its_events(till: Till, used: list[UsageEvent], now_ns: int) -> None:
    chance = random.Random(4)
    moments = [event.end_time_ns for event in used] + [now_ns + n * HOUR_NS for n in range(7)]
    for _ in range(40):
        start, end = sorted(chance.sample(sorted(set(filter(None, moments))), 2))
        period = chance.choice(
            [Period(start, end), Period(None, end), Period(start, None), Period()]
        )
        tenant = chance.choice(["", "acme"])
        query = UsageQuery(tenant_id=tenant, period=period, group_by=("hour", "project"))
        rows = till.store.read(lambda c, q=query: usage_rows(c, q))
        mine = [
            event
            for event in used
            if (not tenant or event.tenant_id == tenant)
            and (period.start_ns is None or period.start_ns <= (event.end_time_ns or 0))
            and (period.end_ns is None or (event.end_time_ns or 0) < period.end_ns)
        ]
        assert sum(row.request_count for row in rows) == len(mine)
        for name in ("hit", "miss", "output"):
            total = sum(getattr(row, name) for row in rows)
            assert total == sum(getattr(event.tokens, name) for event in mine)
        written = Counter[str]()
        for event in mine:
            written[event.tokens.cache_write_ttl_class] += event.tokens.cache_write
        shown = Counter[str]()
        for row in rows:
            shown.update(row.cache_writes)
        assert +shown == +written
        assert len({row.group for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rollups SET miss = miss + 1 WHERE tenant_id = 'acme' AND project = 'search'",
        "UPDATE rollups SET tenant_id = 'zeta' WHERE tenant_id = 'beta'",
        "DELETE FROM rollups WHERE tenant_id = 'acme'",
        "INSERT INTO rollups SELECT 0, tenant_id, project, key, model, price_id, ttl_class, 1, 0,"
        " 0, 0, 0, 0, 0, 0 FROM rollups LIMIT 1",
    ],
)
def test_a_rollup_that_says_something_else_is_found(
    till: Till, used: list[UsageEvent], change: str
) -> None:
    assert till.verify().problem == ""
    till.alter(change)
    found = till.verify()
    assert (found.broken_position, "rollup" in found.problem) == (0, True)
