"""Calendar months of UTC as periods. Pure, any thread."""

from datetime import UTC, datetime

from billing.period import Period

__all__ = ["month_at", "month_of", "next_month"]


def month_at(time_ns: int) -> Period:
    """The month that a moment lies in."""
    at = datetime.fromtimestamp(time_ns // 10**9, UTC)
    year, month = at.year, at.month
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return Period(_start(year, month), _start(*following))


def next_month(month: Period) -> Period:
    assert month.end_ns is not None
    return month_at(month.end_ns)


def month_of(period: Period) -> Period | None:
    """`period`, when it is exactly a month."""
    if period.start_ns is None or not 0 <= period.start_ns < 2**63:
        return None
    return period if month_at(period.start_ns) == period else None


def _start(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 10**9
