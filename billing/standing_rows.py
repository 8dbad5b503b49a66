"""Wallets, budgets, holds and alerts as rows. In the caller's transaction, on its thread."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, delete, func, select, true

from billing.budget import BUDGET_KIND, EVERY_TENANT, budget_from_text
from billing.budget_alert import Alert
from billing.budgets import Budgets
from billing.hold import Hold, Holds, ask_from_text, ask_text
from billing.ledger_rows import insert_rows, put_rows
from billing.ledger_schema import budget_alerts, budget_spend, entries, holds
from billing.money import EXACT, ZERO, to_text
from billing.spending import SpendKey
from billing.standing import Changes, Stored
from billing.wallet_rows import keep_wallets, stored_wallets

__all__ = ["drop_old_spending", "held_money", "keep_changes", "stored_budgets", "stored_standing"]

_DELETED_AT_ONCE = 500

_KEPT_NS = 40 * 24 * 3600 * 10**9


def stored_standing(connection: Connection) -> Stored:
    return Stored(stored_wallets(connection), stored_budgets(connection), _stored_holds(connection))


def stored_budgets(connection: Connection) -> Budgets:
    e = entries.c
    # The first condition is that of an index, which has few rows.
    query = select(e.event, e.position).where(e.kind != "usage", e.kind == BUDGET_KIND)
    rows = connection.execute(query.order_by(e.position)).all()
    return Budgets((budget_from_text(row.event).budget, row.position) for row in rows)


def keep_changes(connection: Connection, changes: Changes) -> Sequence[Alert]:
    """Returns the alerts, to be told of once the transaction is committed."""
    keep_wallets(connection, changes.wallets)
    for start in range(0, len(changes.ended_holds), _DELETED_AT_ONCE):
        some = changes.ended_holds[start : start + _DELETED_AT_ONCE]
        connection.execute(delete(holds).where(holds.c.request_id.in_(some)))
    if changes.new_holds:
        insert_rows(connection, holds, [_hold_row(hold) for hold in changes.new_holds])
    _keep_spending(connection, changes)
    if changes.alerts:
        last = connection.execute(select(func.max(budget_alerts.c.number))).scalar_one() or 0
        rows = [_alert_row(alert, n) for n, alert in enumerate(changes.alerts, last + 1)]
        insert_rows(connection, budget_alerts, rows)
    return changes.alerts


def _keep_spending(connection: Connection, changes: Changes) -> None:
    b = budget_spend.c
    for scope in changes.dropped_spending:
        every = scope.tenant_id == EVERY_TENANT
        tenants = true() if every else b.tenant_id == scope.tenant_id
        gone = (tenants, b.project_id == scope.project_id, b.key_id == scope.key_id)
        connection.execute(delete(budget_spend).where(*gone))
    rows = [_spend_row(key, amount) for key, amount in changes.spending]
    if rows:
        put_rows(connection, budget_spend, rows, [c.name for c in budget_spend.primary_key])


def drop_old_spending(connection: Connection, now_ns: int) -> None:
    """What is over limits nothing any more."""
    connection.execute(delete(budget_spend).where(budget_spend.c.end_ns < now_ns - _KEPT_NS))


def held_money(connection: Connection, tenant_id: str, now_ns: int) -> dict[str, Decimal]:
    """What is held of a tenant's balance, by currency."""
    query = select(holds).where(holds.c.expires_ns > now_ns, holds.c.tenant_id == tenant_id)
    held: dict[str, Decimal] = {}
    for row in connection.execute(query).all():
        held[row.currency] = EXACT.add(held.get(row.currency, ZERO), Decimal(row.amount))
    return held


def _stored_holds(connection: Connection) -> Holds:
    return Holds(
        Hold(
            ask=ask_from_text(row.request_id, row.ask),
            amount=Decimal(row.amount),
            currency=row.currency,
            weight=row.weight_micro,
            expires_ns=row.expires_ns,
        )
        for row in connection.execute(select(holds)).all()
    )


def _hold_row(hold: Hold) -> dict[str, Any]:
    return {
        "request_id": hold.ask.request_id,
        "tenant_id": hold.ask.tenant_id,
        "ask": ask_text(hold.ask),
        "amount": to_text(hold.amount),
        "currency": hold.currency,
        "weight_micro": hold.weight,
        "expires_ns": hold.expires_ns,
    }


def _spend_row(key: SpendKey, amount: Decimal) -> dict[str, Any]:
    scope, currency, period = key
    return {
        "tenant_id": scope.tenant_id,
        "project_id": scope.project_id,
        "key_id": scope.key_id,
        "currency": currency,
        "start_ns": period.start_ns,
        "end_ns": period.end_ns,
        "amount": to_text(amount),
    }


def _alert_row(alert: Alert, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "time_ns": alert.time_ns,
        "kind": alert.kind.value,
        "tenant_id": alert.scope.tenant_id,
        "project_id": alert.scope.project_id,
        "key_id": alert.scope.key_id,
        "budget_position": alert.budget_position,
        "period": alert.period,
        "percent": alert.percent,
        "amount": to_text(alert.amount),
        "limit_amount": to_text(alert.limit),
        "currency": alert.currency,
    }
