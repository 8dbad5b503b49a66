"""How far budgets are used, and the alerts that were given."""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from billing.budget_history import kept_spent, period_spent
from billing.budget_period import period_at
from billing.budgets import Placed
from billing.ledger_schema import budget_alerts
from billing.money import ZERO
from billing.period import Period
from billing.standing import Standing

__all__ = [
    "ALERTS_MAX",
    "BUDGETS_MAX",
    "BudgetStatus",
    "budget_statuses",
    "newest_alerts",
    "with_spent",
]

BUDGETS_MAX = 1_000
ALERTS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    placed: Placed
    held: Decimal
    period: Period | None
    """None: no limit on money."""
    held_requests: int
    spent: Decimal = ZERO


def budget_statuses(
    standing: Standing, tenant_id: str, project_id: str, now_ns: int
) -> tuple[list[BudgetStatus], int]:
    """Those of a tenant, or of all, without what they spent; and how many found no room. On the
    writer's thread.
    """
    standing.expire(now_ns)
    placed = standing.budgets.of(tenant_id, project_id)
    return [_status(standing, each, now_ns) for each in placed[:BUDGETS_MAX]], max(
        0, len(placed) - BUDGETS_MAX
    )


def with_spent(connection: Connection, status: BudgetStatus) -> BudgetStatus:
    """With what is committed. A reader's thread."""
    limit, scope = status.placed.budget.limit, status.placed.scope
    if limit is None or status.period is None:
        return status
    spent = kept_spent(connection, scope, status.period, limit.currency)
    if spent is None:
        spent = period_spent(connection, scope, status.period, limit.currency)
    return replace(status, spent=spent)


def newest_alerts(
    connection: Connection, tenant_id: str, project_id: str, period: Period
) -> list[Any]:
    """Rows of the table, the newest first. A reader's thread."""
    a = budget_alerts.c
    query = select(budget_alerts).order_by(a.number.desc()).limit(ALERTS_MAX)
    if tenant_id:
        query = query.where(a.tenant_id == tenant_id)
    if project_id:
        query = query.where(a.project_id == project_id)
    if period.start_ns is not None:
        query = query.where(a.time_ns >= period.start_ns)
    if period.end_ns is not None:
        query = query.where(a.time_ns < period.end_ns)
    return list(connection.execute(query).all())


def _status(standing: Standing, placed: Placed, now_ns: int) -> BudgetStatus:
    limit, scope = placed.budget.limit, placed.scope
    count = standing.holds.count(scope)
    if limit is None:
        return BudgetStatus(placed, ZERO, None, count)
    period = period_at(limit.period, limit.zone, now_ns)
    return BudgetStatus(placed, standing.holds.money(scope, limit.currency), period, count)
