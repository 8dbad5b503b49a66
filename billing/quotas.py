"""Limits on requests and tokens, by scope.

Made from the ledger's last minute and day, and from what is held, when a scope is first asked for;
so a service that starts anew widens no limit. Owned by the ledger's writer thread.
"""

from collections.abc import Callable
from typing import Any

from billing.budget import Scope
from billing.budget_history import minute_used, period_weight
from billing.budget_period import PeriodKind, period_at
from billing.budgets import Placed
from billing.hold import Holds
from billing.price_book import PriceBook
from billing.quota_state import QuotaShort, QuotaState
from billing.token_bucket import MICRO, TokenBucket

__all__ = ["Quotas"]

STATES_MAX = 100_000
"""With more, all are forgotten and made again."""


class Quotas:
    def __init__(
        self, read: Callable[[Callable[[Any], Any]], Any], book: PriceBook, holds: Holds
    ) -> None:
        self._read = read
        self._book = book
        self._holds = holds
        self._states: dict[Scope, QuotaState] = {}

    def prepare(self, placed: Placed, now_ns: int) -> None:
        """Makes what is known of the scope from the ledger and the holds, unless it is there."""
        self._state(placed, now_ns)

    def short(self, placed: Placed, weight: int, now_ns: int) -> QuotaShort | None:
        """None: a request of that weight may pass."""
        state = self._state(placed, now_ns)
        if state is None:
            return None
        day = period_at(PeriodKind.DAY, placed.budget.zone, now_ns)
        return state.short(weight, self._holds.weight(placed.scope), day, now_ns)

    def take(self, placed: Placed, request_count: int, weight: int, now_ns: int) -> None:
        """Negative: given back."""
        state = self._state(placed, now_ns)
        if state is not None:
            state.take(request_count, weight, now_ns)

    def ended(self, placed: Placed, weight: int, end_time_ns: int, now_ns: int) -> None:
        state = self._state(placed, now_ns)
        if state is not None:
            state.ended(weight, period_at(PeriodKind.DAY, placed.budget.zone, end_time_ns))

    def _state(self, placed: Placed, now_ns: int) -> QuotaState | None:
        budget = placed.budget
        limits = (budget.requests_per_minute, budget.tokens_per_minute, budget.tokens_per_day)
        if limits == (None, None, None):
            return None
        found = self._states.get(placed.scope)
        if found is None or found.budget != budget:
            if len(self._states) >= STATES_MAX:
                self._states.clear()
            found = self._states[placed.scope] = self._made(placed, now_ns)
        return found

    def _made(self, placed: Placed, now_ns: int) -> QuotaState:
        scope, budget = placed.scope, placed.budget
        day = period_at(PeriodKind.DAY, budget.zone, now_ns)

        def bucket(per_minute: int | None, used: int) -> TokenBucket | None:
            if per_minute is None:
                return None
            return TokenBucket.filled(per_minute, now_ns, min(used, per_minute * MICRO))

        minute = self._read(lambda c: minute_used(c, scope, now_ns, self._book))
        count, weight = minute if minute is not None else (2**31, 2**62)
        day_used = 0
        if budget.tokens_per_day is not None:
            day_used = self._read(lambda c: period_weight(c, scope, day, self._book))
        return QuotaState(
            budget=budget,
            requests=bucket(budget.requests_per_minute, (count + self._holds.count(scope)) * MICRO),
            tokens=bucket(budget.tokens_per_minute, weight + self._holds.weight(scope)),
            day=day,
            day_used=day_used,
        )
