"""Budgets: what a tenant, one of its projects or one of its keys may spend and ask for.

Setting one is an entry of the ledger; the newest of a scope holds, and one that says nothing takes
the scope's limits away. Invariant: equal content gives equal text for ever. Frozen: it is hashed.
Frozen data and pure functions, any thread.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.budget_period import PeriodKind
from billing.money import parse_price, to_text

__all__ = [
    "BUDGET_KIND",
    "BUDGET_PREFIX",
    "EVERY_TENANT",
    "Budget",
    "BudgetSet",
    "Scope",
    "SpendLimit",
    "budget_from_text",
    "budget_text",
    "scopes_of",
]

BUDGET_KIND = "budget"
BUDGET_PREFIX = "budget\n"
"""Begins what stands for a request's id in the entry: no event's id has an unprintable letter."""

EVERY_TENANT = "*"
"""In the place of a tenant: each that has no budget of its own, each by itself."""


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """A tenant; one of its projects; or one of its keys, whatever project that is used for."""

    tenant_id: str
    project_id: str = ""
    key_id: str = ""

    def __str__(self) -> str:
        if self.key_id:
            return f"{self.tenant_id} key {self.key_id}"
        return f"{self.tenant_id}/{self.project_id}" if self.project_id else self.tenant_id


def scopes_of(tenant_id: str, project_id: str | None, key_id: str | None) -> tuple[Scope, ...]:
    """All that cover a request, the widest first."""
    scopes = [Scope(tenant_id)]
    if project_id:
        scopes.append(Scope(tenant_id, project_id))
    if key_id:
        scopes.append(Scope(tenant_id, key_id=key_id))
    return tuple(scopes)


@dataclass(frozen=True, slots=True)
class SpendLimit:
    """An amount for each day or month of a time zone."""

    amount: Decimal
    currency: str
    period: PeriodKind
    zone: str = "UTC"
    hard: bool = True
    """False: it only alerts."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Nothing of it set: no limit."""

    scope: Scope
    balance_required: bool = False
    """Of a tenant: what it has left must cover a request."""
    limit: SpendLimit | None = None
    alert_percents: tuple[int, ...] = ()
    """Of the limit, and of the balance as it was last filled; rising."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Weighted: hits may weigh less."""
    tokens_per_day: int | None = None

    @property
    def empty(self) -> bool:
        return self == Budget(self.scope)

    @property
    def of_money(self) -> bool:
        return self.balance_required or (self.limit is not None and self.limit.hard)

    @property
    def zone(self) -> str:
        """That its days are of."""
        return self.limit.zone if self.limit is not None else "UTC"


@dataclass(frozen=True, slots=True)
class BudgetSet:
    """A budget as somebody set it; `budget_id` makes it happen once."""

    budget_id: str
    budget: Budget
    reason: str
    operator: str
    time_ns: int


def budget_text(made: BudgetSet) -> str:
    """Canonical text: one line of ASCII JSON."""
    budget, limit = made.budget, made.budget.limit
    fields = {
        "alert_percents": list(budget.alert_percents),
        "balance_required": budget.balance_required,
        "budget_id": made.budget_id,
        "key_id": budget.scope.key_id,
        "limit": None
        if limit is None
        else {
            "amount": to_text(limit.amount),
            "currency": limit.currency,
            "hard": limit.hard,
            "period": limit.period.value,
            "zone": limit.zone,
        },
        "operator": made.operator,
        "project_id": budget.scope.project_id,
        "reason": made.reason,
        "requests_per_minute": budget.requests_per_minute,
        "tenant_id": budget.scope.tenant_id,
        "time_ns": made.time_ns,
        "tokens_per_day": budget.tokens_per_day,
        "tokens_per_minute": budget.tokens_per_minute,
    }
    return json.dumps({"budget": fields}, separators=(",", ":"), ensure_ascii=True)


def budget_from_text(text: str) -> BudgetSet:
    """Inverse of `budget_text`. Raises ValueError when `text` is not exactly such a line."""
    try:
        made = _read(json.loads(text)["budget"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a stored budget: {error}") from None
    if budget_text(made) != text:
        raise ValueError("not the canonical text of a budget")
    return made


def _read(fields: dict[str, Any]) -> BudgetSet:
    limit = fields["limit"]
    budget = Budget(
        scope=Scope(fields["tenant_id"], fields["project_id"], fields["key_id"]),
        balance_required=fields["balance_required"],
        limit=None
        if limit is None
        else SpendLimit(
            amount=parse_price(limit["amount"]),
            currency=limit["currency"],
            period=PeriodKind(limit["period"]),
            zone=limit["zone"],
            hard=limit["hard"],
        ),
        alert_percents=tuple(fields["alert_percents"]),
        requests_per_minute=fields["requests_per_minute"],
        tokens_per_minute=fields["tokens_per_minute"],
        tokens_per_day=fields["tokens_per_day"],
    )
    names = (fields[name] for name in ("budget_id", "reason", "operator", "time_ns"))
    budget_id, reason, operator, time_ns = names
    return BudgetSet(budget_id, budget, reason, operator, time_ns)
