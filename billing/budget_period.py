"""Days and months of a time zone, as budgets count by them. Pure, any thread.

By this machine's zone data: which day a moment belongs to is no price, and nobody recomputes it.
"""

import zoneinfo
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache

from billing.period import Period

__all__ = ["PeriodKind", "period_at", "zone_problem"]


class PeriodKind(Enum):
    """Values are stored: frozen."""

    DAY = "day"
    MONTH = "month"


def zone_problem(zone: str) -> str:
    """Empty when there is such a zone."""
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return f'"{zone}" is not a time zone; write one as "Asia/Shanghai"'
    return ""


def period_at(kind: PeriodKind, zone: str, time_ns: int) -> Period:
    """The day or month that a moment lies in. REQUIRES: there is such a zone."""
    there = datetime.fromtimestamp(time_ns // 10**9, zoneinfo.ZoneInfo(zone))
    return _period(kind, zone, there.year, there.month, there.day if kind is PeriodKind.DAY else 1)


@lru_cache(maxsize=4096)
def _period(kind: PeriodKind, zone: str, year: int, month: int, day: int) -> Period:
    first = datetime(year, month, day)
    after = first + timedelta(days=1 if kind is PeriodKind.DAY else 32)
    if kind is PeriodKind.MONTH:
        after = after.replace(day=1)
    found = zoneinfo.ZoneInfo(zone)
    start, end = (int(each.replace(tzinfo=found).timestamp()) for each in (first, after))
    return Period(start * 10**9, end * 10**9)
