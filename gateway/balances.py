"""What a key's organisation has left, from billing, in DeepSeek's shape.

Amounts are the ledger's, exact and as text; nothing is kept here. Event loop; owns the channel.
"""

import logging
from decimal import Decimal
from typing import Any

import grpc

from gateway.errors import BalanceUnavailableError
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.v1 import budget_pb2 as pb
from kvtier.v1 import budget_pb2_grpc

__all__ = ["Balances", "balance_fields"]

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


class Balances:
    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._channel = open_aio_channel(address, credentials)
        self._stub = budget_pb2_grpc.BudgetServiceStub(self._channel)

    async def of(self, organisation: str) -> dict[str, Any]:
        """Raises BalanceUnavailableError."""
        try:
            answer = await self._stub.GetBalance(
                pb.GetBalanceRequest(tenant_id=organisation), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            wire = read_error(error)
            log.warning("billing told no balance", extra={"reason": wire.reason or wire.code.name})
            raise BalanceUnavailableError("the balance cannot be told now; ask again") from None
        return balance_fields(answer)

    async def close(self) -> None:
        await self._channel.close()


def balance_fields(answer: pb.GetBalanceResponse) -> dict[str, Any]:
    """Available is who never paid in before, and so pays later, and who has something left."""
    left = [Decimal(each.total_amount) > 0 for each in answer.balances]
    return {
        "is_available": any(left) or not left,
        "balance_infos": [
            {
                "currency": each.currency_code,
                "total_balance": each.total_amount,
                "granted_balance": each.granted_amount,
                "topped_up_balance": each.topped_up_amount,
            }
            for each in answer.balances
        ],
    }
