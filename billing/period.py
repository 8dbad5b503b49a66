"""A period of time: from a start up to, not including, an end. Frozen data, any thread."""

from dataclasses import dataclass

from billing.errors import InvalidPeriodError

__all__ = ["DAY_NS", "HOUR_NS", "Period"]

HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS


@dataclass(frozen=True, slots=True)
class Period:
    """Nanoseconds since 1970 UTC; None: without bound on that side."""

    start_ns: int | None = None
    end_ns: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidPeriodError when there is nothing in between."""
        if self.start_ns is not None and self.end_ns is not None and self.start_ns >= self.end_ns:
            raise InvalidPeriodError("the period's start must be before its end")
