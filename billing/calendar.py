"""Local time, working days and windows of hours.

A zone is kept as its offsets from UTC, each from a moment on, not as a name alone: the rules behind
a name change by decree and differ between machines, and a price that was promised does not.
Invariant: equal data gives equal answers on every machine. Pure, any thread.
"""

import zoneinfo
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import product

__all__ = ["DAY_NAMES", "DAY_SECONDS", "Calendar", "Window", "offsets_of", "overlap"]

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_NAMES = (*WEEKDAYS, "workday", "offday", "holiday")
"""A working day is Monday to Friday and no holiday, or named as one; each other is an off day."""

DAY_SECONDS = 86_400
OFFSET_YEARS = 20
"""How far offsets are spelled out; the last one stays from there on."""

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Calendar:
    name: str
    zone: str
    """Of the IANA database; for people, `offsets` counts."""
    offsets: tuple[tuple[int, int], ...]
    """(seconds since 1970 UTC from where on, seconds east of UTC); the first holds before, too."""
    holidays: tuple[date, ...] = ()
    workdays: tuple[date, ...] = ()
    """Days of a weekend, or holidays' neighbours, on which people work."""

    def local(self, time_ns: int) -> tuple[date, int]:
        """The day there, and its second."""
        seconds = time_ns // 10**9
        place = max(bisect_right(self._starts, seconds) - 1, 0)
        days, second = divmod(seconds + self.offsets[place][1], DAY_SECONDS)
        return _EPOCH + timedelta(days=days), second

    def names(self, day: date) -> frozenset[str]:
        """Which of DAY_NAMES a day has."""
        return _names(day.weekday(), day in self._holidays, day in self._workdays)

    def kinds(self, weekday: int) -> Iterator[frozenset[str]]:
        """Names that a day on `weekday` can have in this calendar."""
        for holiday, workday in {(False, False)} | {
            (day in self._holidays, day in self._workdays)
            for day in (*self.holidays, *self.workdays)
            if day.weekday() == weekday
        }:
            yield _names(weekday, holiday, workday)

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.offsets]

    @cached_property
    def _holidays(self) -> frozenset[date]:
        return frozenset(self.holidays)

    @cached_property
    def _workdays(self) -> frozenset[date]:
        return frozenset(self.workdays)


@dataclass(frozen=True)
class Window:
    """Hours of some days. Hours past midnight belong to the day they began on."""

    name: str
    calendar: str
    days: tuple[str, ...]
    """Of DAY_NAMES; a day with any of them."""
    hours: tuple[tuple[int, int], ...]
    """(from, to) in seconds of the day, to past DAY_SECONDS where it goes on the next day."""

    def holds(self, calendar: Calendar, time_ns: int) -> bool:
        day, second = calendar.local(time_ns)
        if self._on(calendar.names(day)) and any(a <= second < b for a, b in self.hours):
            return True
        second += DAY_SECONDS
        return any(a <= second < b for a, b in self.hours) and self._on(
            calendar.names(day - timedelta(days=1))
        )

    def spans(self, today: frozenset[str], yesterday: frozenset[str]) -> list[tuple[int, int]]:
        """Seconds of a day on which the window holds, by its names and those of the day before."""
        spans = [(a, min(b, DAY_SECONDS)) for a, b in self.hours if self._on(today)]
        if self._on(yesterday):
            spans += [(0, b - DAY_SECONDS) for _, b in self.hours if b > DAY_SECONDS]
        return spans

    def _on(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(self.days)


def overlap(calendar: Calendar, one: Window, other: Window) -> str | None:
    """A moment of the week that both hold at, for people; None when there is none."""
    for weekday in range(7):
        before = (weekday - 1) % 7
        for today, yesterday in product(calendar.kinds(weekday), calendar.kinds(before)):
            for a, b in one.spans(today, yesterday):
                for c, d in other.spans(today, yesterday):
                    start = max(a, c)
                    if start < min(b, d):
                        hour, minute = divmod(start // 60, 60)
                        return f"{WEEKDAYS[weekday]} {hour:02}:{minute:02}"
    return None


def offsets_of(zone: str, from_ns: int) -> tuple[tuple[int, int], ...]:
    """A zone's offsets from `from_ns` on. Raises ValueError when there is no such zone."""
    try:
        found = zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'"{zone}" is not a time zone; write one as "Asia/Shanghai"') from None

    def offset(seconds: int) -> int:
        there = datetime.fromtimestamp(seconds, UTC).astimezone(found).utcoffset()
        assert there is not None
        return int(there.total_seconds())

    start = from_ns // 10**9
    offsets = [(start, offset(start))]
    for day in range(OFFSET_YEARS * 366):
        low, high = start + day * DAY_SECONDS, start + (day + 1) * DAY_SECONDS
        there = offset(high)
        if there == offsets[-1][1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if offset(middle) == there else (middle, high)
        offsets.append((high, there))
    return tuple(offsets)


def _names(weekday: int, holiday: bool, workday: bool) -> frozenset[str]:
    works = workday or (weekday < 5 and not holiday)
    names = {WEEKDAYS[weekday], "workday" if works else "offday"}
    return frozenset(names | ({"holiday"} if holiday and not workday else set()))
