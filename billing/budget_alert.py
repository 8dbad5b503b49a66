"""Alerts: a threshold of a limit or of a balance was passed, once in its period.

    spend        so many percent of a limit are spent
    balance      so many percent of what a balance was last filled to are used
    overdrawn    a balance that is required went below zero

Frozen data; pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from billing.budget import Scope
from billing.money import EXACT

__all__ = ["Alert", "AlertKind", "passed_percents"]


class AlertKind(Enum):
    """Values are stored and told: frozen."""

    SPEND = "spend"
    BALANCE = "balance"
    OVERDRAWN = "overdrawn"


@dataclass(frozen=True, slots=True)
class Alert:
    kind: AlertKind
    scope: Scope
    budget_position: int
    """Of the entry that set the budget."""
    period: int
    """Start of the day or month, ns; of a balance, position of the entry that last filled it."""
    percent: int
    amount: Decimal
    """Spent; of a balance, what is left."""
    limit: Decimal
    """Of a balance, what it was filled to."""
    currency: str
    time_ns: int

    @property
    def key(self) -> tuple[str, Scope, int, int]:
        """Together with `percent`: of these there is one."""
        return self.kind.value, self.scope, self.budget_position, self.period


def passed_percents(percents: Iterable[int], used: Decimal, limit: Decimal) -> list[int]:
    """Thresholds that `used` of `limit` has reached."""
    hundredfold = EXACT.multiply(used, Decimal(100))
    return [p for p in percents if hundredfold >= EXACT.multiply(limit, Decimal(p))]
