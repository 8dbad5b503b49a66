"""Balances, budgets and alerts as data for JSON and tables. Pure."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.v1 import budget_pb2

__all__ = ["alert_data", "balance_data", "budget_data", "funding_data"]


def balance_data(balance: budget_pb2.Balance) -> dict[str, Any]:
    return {
        "currency": balance.currency_code,
        "total": balance.total_amount,
        "granted": balance.granted_amount,
        "topped_up": balance.topped_up_amount,
        "held": balance.held_amount,
        "grants": [
            {
                "position": grant.ledger_position,
                "left": grant.left_amount,
                "expires": _time(grant.expire_time) if grant.HasField("expire_time") else None,
            }
            for grant in balance.grants
        ],
    }


def funding_data(response: budget_pb2.FundBalanceResponse) -> dict[str, Any]:
    funding = response.funding
    kind = budget_pb2.FundingKind.Name(funding.kind).removeprefix("FUNDING_KIND_").lower()
    return {
        "funding_id": funding.funding_id,
        "kind": kind,
        "tenant": funding.tenant_id,
        "amount": funding.amount,
        "currency": funding.currency_code,
        "expires": _time(funding.expire_time) if funding.HasField("expire_time") else None,
        "reason": funding.reason,
        "operator": funding.operator,
        "time": _time(funding.create_time),
        "position": funding.ledger_position,
        "already_there": response.already_there,
    }


def budget_data(status: budget_pb2.BudgetStatus) -> dict[str, Any]:
    budget = status.budget
    limit = budget.limit if budget.HasField("limit") else None
    return {
        "tenant": budget.tenant_id,
        "project": budget.project_id,
        "key": budget.key_id,
        "balance_required": budget.balance_required,
        "limit": limit.amount if limit else None,
        "currency": limit.currency_code if limit else None,
        "period": _period(limit) if limit else None,
        "time_zone": limit.time_zone if limit else None,
        "soft": limit.soft if limit else None,
        "alert_percents": list(budget.alert_percents),
        "spent": status.spent_amount if limit else None,
        "held": status.held_amount if limit else None,
        "period_start": _time(status.period_start_time) if limit else None,
        "period_end": _time(status.period_end_time) if limit else None,
        **{
            name: getattr(budget, name) if budget.HasField(name) else None
            for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day")
        },
        "held_requests": status.held_request_count,
        "position": status.ledger_position,
    }


def alert_data(alert: budget_pb2.BudgetAlert) -> dict[str, Any]:
    kind = budget_pb2.BudgetAlertKind.Name(alert.kind).removeprefix("BUDGET_ALERT_KIND_").lower()
    return {
        "time": _time(alert.create_time),
        "kind": kind,
        "tenant": alert.tenant_id,
        "project": alert.project_id,
        "key": alert.key_id,
        "percent": alert.percent,
        "amount": alert.amount,
        "limit": alert.limit_amount,
        "currency": alert.currency_code,
    }


def _period(limit: budget_pb2.SpendLimit) -> str:
    return budget_pb2.BudgetPeriod.Name(limit.period).removeprefix("BUDGET_PERIOD_").lower()


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToJsonString()
