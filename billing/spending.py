"""What each scope has spent in the day or month that it is limited by.

Kept as rows, in the transaction of each entry that changes it, and summed up from the ledger where
there is none: when a limit is new. Invariant: what it says is the sum of the ledger's amounts,
those of the transaction under way counted. Owned by the ledger's writer thread; `read` shows what
is committed.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from billing.budget import EVERY_TENANT, Scope, SpendLimit
from billing.budget_history import kept_spent, period_spent
from billing.money import EXACT
from billing.period import Period

__all__ = ["SpendKey", "Spending"]

COUNTERS_MAX = 100_000
"""With more, all are forgotten and looked up again."""

SpendKey = tuple[Scope, str, Period]
"""(scope, currency, period)."""


class Spending:
    def __init__(self, read: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._read = read
        self._spent: dict[SpendKey, Decimal] = {}
        self._changed: set[SpendKey] = set()
        self._dropped: list[Scope] = []

    def of(self, scope: Scope, limit: SpendLimit, period: Period) -> Decimal:
        key = (scope, limit.currency, period)
        found = self._spent.get(key)
        if found is None:
            if len(self._spent) - len(self._changed) >= COUNTERS_MAX:
                self._spent = {each: self._spent[each] for each in self._changed}
            found = self._spent[key] = self._read(lambda connection: _looked_up(connection, *key))
        return found

    def add(self, scope: Scope, limit: SpendLimit, period: Period, amount: Decimal) -> Decimal:
        """What it is then. REQUIRES: `amount` is of no entry that `read` shows."""
        now = EXACT.add(self.of(scope, limit, period), amount)
        key = (scope, limit.currency, period)
        self._spent[key] = now
        self._changed.add(key)
        return now

    def drop(self, scope: Scope) -> None:
        """Another budget holds: what was kept for it is not kept up any more."""
        every = scope.tenant_id == EVERY_TENANT
        for key in list(self._spent):
            if key[0] == scope or (every and key[0] == Scope(key[0].tenant_id)):
                del self._spent[key]
                self._changed.discard(key)
        self._dropped.append(scope)

    def take_changes(self) -> tuple[list[Scope], list[tuple[SpendKey, Decimal]]]:
        """Scopes whose rows go, and rows that come, since the last call."""
        changed = [(key, self._spent[key]) for key in self._changed]
        dropped, self._dropped = self._dropped, []
        self._changed.clear()
        return dropped, changed


def _looked_up(connection: Connection, scope: Scope, currency: str, period: Period) -> Decimal:
    kept = kept_spent(connection, scope, period, currency)
    return kept if kept is not None else period_spent(connection, scope, period, currency)
