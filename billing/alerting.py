"""Which alerts are due: each threshold once in a period, also over restarts.

Owned by the ledger's writer thread; `read` shows what is committed.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from billing.budget import Scope
from billing.budget_alert import Alert, AlertKind, passed_percents
from billing.budget_history import alerted
from billing.budgets import Placed
from billing.money import EXACT, ZERO
from billing.wallet import Wallet

__all__ = ["Alerting"]

PERIODS_MAX = 100_000
"""With more, all are forgotten and looked up again."""


class Alerting:
    def __init__(self, read: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._read = read
        self._given: dict[tuple[str, Scope, int, int], set[int]] = {}
        self._due: list[Alert] = []

    def spent(self, placed: Placed, period_start_ns: int, spent: Decimal, now_ns: int) -> None:
        """A scope has spent so much of its limit."""
        limit = placed.budget.limit
        assert limit is not None, "what has no limit passes none"
        alert = _unpassed(AlertKind.SPEND, placed, limit.currency, now_ns)
        alert = replace(alert, period=period_start_ns, amount=spent, limit=limit.amount)
        self._pass(placed.budget.alert_percents, spent, alert)

    def left(self, placed: Placed, wallet: Wallet, currency: str, now_ns: int) -> None:
        """A tenant's balance is what its wallet says."""
        left, full = wallet.available_at(now_ns), wallet.full
        alert = _unpassed(AlertKind.BALANCE, placed, currency, now_ns)
        alert = replace(alert, period=wallet.full_position, amount=left, limit=full)
        used = EXACT.subtract(full, left)
        if full > 0:
            self._pass(placed.budget.alert_percents, used, alert)
        if left < 0 and placed.budget.balance_required:
            self._pass((100,), used, replace(alert, kind=AlertKind.OVERDRAWN))

    def take_due(self) -> list[Alert]:
        due, self._due = self._due, []
        return due

    def _pass(self, percents: Iterable[int], used: Decimal, alert: Alert) -> None:
        for percent in passed_percents(percents, used, alert.limit):
            given = self._of(alert.key)
            if percent not in given:
                given.add(percent)
                self._due.append(replace(alert, percent=percent))

    def _of(self, key: tuple[str, Scope, int, int]) -> set[int]:
        found = self._given.get(key)
        if found is None:
            if len(self._given) >= PERIODS_MAX:
                self._given.clear()
            kind, scope, position, period = key
            found = self._read(lambda c: alerted(c, scope, kind, position, period))
            self._given[key] = found
        return found


def _unpassed(kind: AlertKind, placed: Placed, currency: str, now_ns: int) -> Alert:
    return Alert(kind, placed.scope, placed.position, 0, 0, ZERO, ZERO, currency, now_ns)
