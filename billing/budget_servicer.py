"""BudgetService's edge: check, call, convert; no decisions. Runs on the event loop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from sqlalchemy import Connection

from billing.budget_status import budget_statuses, newest_alerts, with_spent
from billing.errors import BillingError
from billing.ledger import Ledger
from billing.ledger_store import LedgerStore
from billing.metrics import BillingMetrics
from billing.money import ZERO
from billing.places import Places
from billing.reservations import Reservations, check_ask
from billing.standing import Standing
from billing.standing_rows import held_money
from billing.wallet_rows import stored_wallets
from billing.wire import period_of
from billing.wire_balance import balance_message, funded_message, funding_ask_of
from billing.wire_budget import (
    alert_message,
    budget_asked,
    budget_set_message,
    reserve_ask_of,
    reserved_message,
    status_message,
)
from kvtier.v1 import budget_pb2, budget_pb2_grpc

__all__ = ["BudgetParts", "BudgetServicer"]

READING_MAX = 64
"""Calls that read the ledger at a time."""

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BudgetParts:
    """What the edge calls."""

    ledger: Ledger
    store: LedgerStore
    clock_ns: Callable[[], int]
    readers: Executor
    reservations: Reservations
    metrics: BillingMetrics


class BudgetServicer(budget_pb2_grpc.BudgetServiceServicer):
    """Counts the calls under way; holds no other state."""

    def __init__(self, parts: BudgetParts) -> None:
        self._parts = parts
        self._reading = Places(READING_MAX)

    async def FundBalance(
        self, request: budget_pb2.FundBalanceRequest, context: Context
    ) -> budget_pb2.FundBalanceResponse:
        made = await asyncio.wrap_future(self._parts.ledger.fund(funding_ask_of(request)))
        return funded_message(made)

    async def GetBalance(
        self, request: budget_pb2.GetBalanceRequest, context: Context
    ) -> budget_pb2.GetBalanceResponse:
        def look_up(connection: Connection) -> budget_pb2.GetBalanceResponse:
            tenant_id, now_ns = request.tenant_id, self._parts.clock_ns()
            found = stored_wallets(connection, tenant_id).of(tenant_id)
            held = held_money(connection, tenant_id, now_ns)
            balances = (
                balance_message(name, found[name], held.get(name, ZERO), now_ns)
                for name in sorted(found)
            )
            return budget_pb2.GetBalanceResponse(balances=balances)

        return await self._read(look_up)

    async def ReserveBudget(
        self, request: budget_pb2.ReserveBudgetRequest, context: Context
    ) -> budget_pb2.ReserveBudgetResponse:
        started, outcome = time.monotonic(), "failed"
        try:
            ask = reserve_ask_of(request)
            check_ask(ask, self._parts.clock_ns())
            made = await asyncio.wrap_future(self._parts.reservations.reserve(ask))
            outcome = "held" if made.held else "free"
            return reserved_message(made)
        except BillingError as error:
            outcome = error.reason.lower()
            raise
        finally:
            self._parts.metrics.reserved(outcome, time.monotonic() - started)

    async def ReleaseBudget(
        self, request: budget_pb2.ReleaseBudgetRequest, context: Context
    ) -> budget_pb2.ReleaseBudgetResponse:
        released = await asyncio.wrap_future(self._parts.reservations.release(request.request_id))
        return budget_pb2.ReleaseBudgetResponse(released=released)

    async def SetBudget(
        self, request: budget_pb2.SetBudgetRequest, context: Context
    ) -> budget_pb2.SetBudgetResponse:
        done = await asyncio.wrap_future(self._parts.ledger.set_budget(budget_asked(request)))
        return budget_set_message(done)

    async def ListBudgets(
        self, request: budget_pb2.ListBudgetsRequest, context: Context
    ) -> budget_pb2.ListBudgetsResponse:
        def look_up(_: Connection, standing: Standing, now_ns: int) -> tuple[list[Any], int]:
            return budget_statuses(standing, request.tenant_id, request.project_id, now_ns)

        found, omitted = await asyncio.wrap_future(self._parts.ledger.decide(look_up))
        found = await self._read(lambda c: [with_spent(c, each) for each in found])
        return budget_pb2.ListBudgetsResponse(
            budgets=map(status_message, found), omitted_count=omitted
        )

    async def ListBudgetAlerts(
        self, request: budget_pb2.ListBudgetAlertsRequest, context: Context
    ) -> budget_pb2.ListBudgetAlertsResponse:
        period = period_of(request)
        rows = await self._read(
            lambda c: newest_alerts(c, request.tenant_id, request.project_id, period)
        )
        return budget_pb2.ListBudgetAlertsResponse(alerts=map(alert_message, rows))

    async def _read(self, query: Callable[[Connection], Result]) -> Result:
        with self._reading.one():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._parts.readers, lambda: self._parts.store.read(query)
            )
