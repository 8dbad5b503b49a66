"""BudgetService's edge: check, call, convert; no decisions. Runs on the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from sqlalchemy import Connection

from billing.ledger import Ledger
from billing.ledger_store import LedgerStore
from billing.places import Places
from billing.wallet_rows import stored_wallets
from billing.wire_balance import balance_message, funded_message, funding_ask_of
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
            found = stored_wallets(connection, request.tenant_id).of(request.tenant_id)
            now_ns = self._parts.clock_ns()
            balances = (balance_message(name, found[name], now_ns) for name in sorted(found))
            return budget_pb2.GetBalanceResponse(balances=balances)

        return await self._read(look_up)

    async def _read(self, query: Callable[[Connection], Result]) -> Result:
        with self._reading.one():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._parts.readers, lambda: self._parts.store.read(query)
            )
