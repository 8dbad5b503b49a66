"""Balances as data for JSON and tables. Pure."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.v1 import budget_pb2

__all__ = ["balance_data", "funding_data"]


def balance_data(balance: budget_pb2.Balance) -> dict[str, Any]:
    return {
        "currency": balance.currency_code,
        "total": balance.total_amount,
        "granted": balance.granted_amount,
        "topped_up": balance.topped_up_amount,
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


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToJsonString()
