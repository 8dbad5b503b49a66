"""Budgets, reservations and alerts as messages of `kvtier.v1`, and back. Pure functions, any
thread.
"""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from billing.budget import Budget, BudgetSet, Scope, SpendLimit
from billing.budget_entries import SetDone
from billing.budget_period import PeriodKind
from billing.budget_status import BudgetStatus
from billing.cost_bound import RequestShape
from billing.errors import BudgetRefusedError
from billing.hold import ReserveAsk
from billing.money import parse_price, to_text
from billing.reservations import Reserved
from kvtier.v1 import budget_pb2

__all__ = [
    "alert_message",
    "budget_asked",
    "budget_message",
    "budget_set_message",
    "reserve_ask_of",
    "reserved_message",
    "status_message",
]


def reserve_ask_of(request: budget_pb2.ReserveBudgetRequest) -> ReserveAsk:
    at = request.deadline_time
    return ReserveAsk(
        request_id=request.request_id,
        tenant_id=request.tenant_id,
        project_id=request.project_id,
        key_id=request.key_id,
        shape=RequestShape(
            model=request.model,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            service_class=request.service_class,
            ttl_class=request.ttl_class,
        ),
        deadline_ns=at.seconds * 10**9 + at.nanos,
    )


def reserved_message(made: Reserved) -> budget_pb2.ReserveBudgetResponse:
    hold = made.hold
    return budget_pb2.ReserveBudgetResponse(
        amount=to_text(hold.amount),
        currency_code=hold.currency,
        expire_time=_time(hold.expires_ns) if made.held else None,
        already_there=made.again,
    )


def budget_asked(request: budget_pb2.SetBudgetRequest) -> BudgetSet:
    """Its time is not said. Raises BudgetRefusedError for an amount or a period that is none."""
    said = request.budget
    budget = Budget(
        scope=Scope(said.tenant_id, said.project_id, said.key_id),
        balance_required=said.balance_required,
        limit=_limit_of(said.limit) if said.HasField("limit") else None,
        alert_percents=tuple(said.alert_percents),
        requests_per_minute=_said(said, "requests_per_minute"),
        tokens_per_minute=_said(said, "tokens_per_minute"),
        tokens_per_day=_said(said, "tokens_per_day"),
    )
    return BudgetSet(request.budget_id, budget, request.reason, request.operator, 0)


def budget_set_message(done: SetDone) -> budget_pb2.SetBudgetResponse:
    return budget_pb2.SetBudgetResponse(
        ledger_position=done.position,
        create_time=_time(done.made.time_ns),
        already_there=done.again,
    )


def budget_message(budget: Budget) -> budget_pb2.Budget:
    limit = budget.limit
    return budget_pb2.Budget(
        tenant_id=budget.scope.tenant_id,
        project_id=budget.scope.project_id,
        key_id=budget.scope.key_id,
        balance_required=budget.balance_required,
        limit=None
        if limit is None
        else budget_pb2.SpendLimit(
            amount=to_text(limit.amount),
            currency_code=limit.currency,
            period=f"BUDGET_PERIOD_{limit.period.name}",
            time_zone=limit.zone,
            soft=not limit.hard,
        ),
        alert_percents=budget.alert_percents,
        requests_per_minute=budget.requests_per_minute,
        tokens_per_minute=budget.tokens_per_minute,
        tokens_per_day=budget.tokens_per_day,
    )


def status_message(status: BudgetStatus) -> budget_pb2.BudgetStatus:
    period = status.period
    return budget_pb2.BudgetStatus(
        budget=budget_message(status.placed.budget),
        ledger_position=status.placed.position,
        spent_amount=to_text(status.spent),
        held_amount=to_text(status.held),
        period_start_time=_time(period.start_ns) if period is not None else None,
        period_end_time=_time(period.end_ns) if period is not None else None,
        held_request_count=status.held_requests,
    )


def alert_message(row: Any) -> budget_pb2.BudgetAlert:
    """Of a row of the table of alerts."""
    return budget_pb2.BudgetAlert(
        kind=f"BUDGET_ALERT_KIND_{row.kind.upper()}",
        tenant_id=row.tenant_id,
        project_id=row.project_id,
        key_id=row.key_id,
        percent=row.percent,
        amount=row.amount,
        limit_amount=row.limit_amount,
        currency_code=row.currency,
        create_time=_time(row.time_ns),
    )


def _limit_of(said: budget_pb2.SpendLimit) -> SpendLimit:
    if said.period not in _PERIODS:
        raise BudgetRefusedError("a limit is of a day or of a month")
    try:
        amount = parse_price(said.amount)
    except ValueError as error:
        raise BudgetRefusedError(f"not an amount: {error}") from None
    zone = said.time_zone or "UTC"
    return SpendLimit(amount, said.currency_code, _PERIODS[said.period], zone, not said.soft)


def _said(message: budget_pb2.Budget, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None


def _time(time_ns: int | None) -> Timestamp | None:
    if time_ns is None:
        return None
    time = Timestamp()
    time.FromNanoseconds(time_ns)
    return time


_PERIODS = {
    budget_pb2.BUDGET_PERIOD_DAY: PeriodKind.DAY,
    budget_pb2.BUDGET_PERIOD_MONTH: PeriodKind.MONTH,
}
