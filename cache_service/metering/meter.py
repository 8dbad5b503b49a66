"""StorageMeter: holdings by organisation, model and tier, and their use by hour of the clock.

Invariant: each hour of each holding is cut once, at its full hour or at the end; a holding that has
nothing any more is forgotten with its hour. The clock never goes back. Event loop only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cache_service.metering.holding import HOUR_NS, Holding, Use
from kvtier.blocks import Tier

__all__ = ["HourUse", "Sort", "StorageMeter"]


class Sort(NamedTuple):
    """What is counted together."""

    tenant_id: str
    model: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class HourUse:
    """Of one sort, from `start_ns` up to `end_ns`, within one hour of UTC."""

    sort: Sort
    start_ns: int
    end_ns: int
    use: Use


class StorageMeter:
    """`clock_ns`: nanoseconds since 1970 UTC, never going back."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._holdings: dict[Sort, Holding] = {}
        self._since: dict[Sort, int] = {}
        self._hour = clock_ns() // HOUR_NS
        self._cut: list[HourUse] = []

    def came(self, sort: Sort, tokens: int) -> int:
        """Returns the phase that `left` wants to hear."""
        now_ns = self._now()
        holding = self._holdings.get(sort)
        if holding is None:
            holding = self._holdings[sort] = Holding(now_ns)
            self._since[sort] = now_ns
        return holding.came(tokens, now_ns)

    def left(self, sort: Sort, phases: Mapping[int, int]) -> None:
        now_ns = self._now()
        self._holdings[sort].left(phases, now_ns)

    def take_hours(self) -> list[HourUse]:
        """What full hours cut off since the last call."""
        self._now()
        found, self._cut = self._cut, []
        return found

    def uses(self) -> list[HourUse]:
        """The hour under way, until now."""
        now_ns = self._now()
        return [
            HourUse(sort, self._since[sort], now_ns, holding.use(now_ns))
            for sort, holding in self._holdings.items()
        ]

    def close(self) -> list[HourUse]:
        """All that is left, cut now. The last call."""
        now_ns = self._now()
        self._cut_all(now_ns)
        self._holdings.clear()
        return self.take_cut()

    def take_cut(self) -> list[HourUse]:
        found, self._cut = self._cut, []
        return found

    def tokens(self) -> dict[Sort, int]:
        """What is kept now."""
        return {sort: each.tokens for sort, each in self._holdings.items() if each.tokens}

    def _now(self) -> int:
        now_ns = self._clock_ns()
        while now_ns >= (self._hour + 1) * HOUR_NS:
            if not self._holdings:
                self._hour = now_ns // HOUR_NS
                break
            self._hour += 1
            self._cut_all(self._hour * HOUR_NS)
        return now_ns

    def _cut_all(self, now_ns: int) -> None:
        for sort, holding in list(self._holdings.items()):
            use = holding.cut(now_ns)
            if use != Use(0, 0, 0):
                self._cut.append(HourUse(sort, self._since[sort], now_ns, use))
            self._since[sort] = now_ns
            if not holding.tokens:
                del self._holdings[sort], self._since[sort]

    def check_integrity(self) -> None:
        for holding in self._holdings.values():
            holding.check_integrity()
