"""ReceiptService's edge: check, call, convert; no decisions.

Event loop; the ledger is read on a reader's thread, and its writer signs.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import Connection

from billing.checkpoint import LedgerKey
from billing.ledger import Ledger
from billing.ledger_store import LedgerStore
from billing.places import Places
from billing.receipt import file_bytes, signed_bytes
from billing.receipt_issue import brought_up, draft_of, receipt_of
from kvtier.v1 import receipt_pb2, receipt_pb2_grpc

__all__ = ["RECEIPT_SERVICE", "ReceiptParts", "ReceiptServicer"]

RECEIPT_SERVICE = receipt_pb2.DESCRIPTOR.services_by_name["ReceiptService"].full_name

ISSUING_MAX = 32
"""Calls at a time; one more is told to send again."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ReceiptParts:
    """What the edge calls."""

    ledger: Ledger
    store: LedgerStore
    readers: Executor


class ReceiptServicer(receipt_pb2_grpc.ReceiptServiceServicer):
    """Counts the calls under way; holds no other state."""

    def __init__(self, parts: ReceiptParts) -> None:
        self._parts = parts
        self._issuing = Places(ISSUING_MAX)

    async def GetReceipt(
        self, request: receipt_pb2.GetReceiptRequest, context: Context
    ) -> receipt_pb2.GetReceiptResponse:
        parts = self._parts
        with self._issuing.one():
            draft = await asyncio.get_running_loop().run_in_executor(
                parts.readers,
                lambda: parts.store.read(
                    lambda connection: draft_of(
                        connection, request.id, request.tenant_id, request.project_id
                    )
                ),
            )
            made: dict[str, Any] = {}

            def message(connection: Connection, keys: Sequence[LedgerKey], now_ns: int) -> bytes:
                # On the writer, where nothing comes in between: what is said is as of that time.
                made.update(receipt_of(brought_up(connection, draft), keys, now_ns))
                return signed_bytes(made)

            signature = await asyncio.wrap_future(parts.ledger.sign(message))
        return receipt_pb2.GetReceiptResponse(receipt=file_bytes(made, signature))
