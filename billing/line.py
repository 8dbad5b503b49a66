"""Lines of a rated request: a key, and how many of it.

Invariant: an amount is a function of key and quantity, and linear in the quantity, so quantities of
the same key may be added up, in any order and in parts, before they are priced. Exact. Frozen data,
any thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple

from billing.money import EXACT, ZERO, amount_of

__all__ = ["LineKey", "RatedLine", "saved_by_hits", "saved_net", "total_of"]


@dataclass(frozen=True)
class LineKey:
    """What lines have in common whose quantities may be added up."""

    meter: str
    """"hit" or one of its tiers with a price of its own, "miss", "output", "cache_write",
    "request", "storage"."""
    ttl_class: str
    """Of "cache_write"."""
    unit_price: Decimal
    """Of `per` of them."""
    per: int
    """A power of ten."""
    baseline: Decimal
    """What `per` of them would have cost without a cache."""
    rule: str = ""
    """Which step, window, service class and promotion made the price; empty: the base rates."""

    def amount(self, quantity: int) -> Decimal:
        return EXACT.multiply(self._price_of_one, quantity)

    def saved(self, quantity: int) -> Decimal:
        """What the cache took off; of cache writes it is what they cost more, negative, and so is
        all that storage costs."""
        return amount_of(quantity, self._less, 1 - len(str(self.per)))

    @property
    def of_hits(self) -> bool:
        return self.meter.startswith("hit")

    @cached_property
    def _price_of_one(self) -> Decimal:
        return EXACT.scaleb(self.unit_price, 1 - len(str(self.per)))

    @cached_property
    def _less(self) -> Decimal:
        return EXACT.subtract(self.baseline, self.unit_price)


class RatedLine(NamedTuple):
    key: LineKey
    quantity: int
    """As charged: after minimums, steps and rounding up."""

    @property
    def amount(self) -> Decimal:
        return self.key.amount(self.quantity)


def saved_by_hits(key: LineKey, quantity: int) -> Decimal:
    """What hit tokens would have cost more as miss tokens; nothing of other lines."""
    return key.saved(quantity) if key.of_hits else ZERO


def saved_net(key: LineKey, quantity: int) -> Decimal:
    """The same less what the cache costs: cache writes and storage."""
    return key.saved(quantity)


def total_of(lines: Iterable[RatedLine]) -> Decimal:
    total = ZERO
    for line in lines:
        total = EXACT.add(total, line.amount)
    return total
