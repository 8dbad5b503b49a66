"""UsageService's edge: check, call, convert; no decisions.

Runs on the event loop. What takes longer than a moment (converting hundreds of events, reading the
ledger) goes to executors that `server.py` owns; the ledger's writer answers through a future.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from sqlalchemy import Connection

from billing.charges import charges_of
from billing.errors import TooManyEventsError
from billing.invoice import invoice_of
from billing.ledger import Ledger
from billing.ledger_lookup import found_entries
from billing.ledger_store import LedgerStore
from billing.ledger_verify import verify_ledger
from billing.metrics import BillingMetrics
from billing.places import Places
from billing.price_book import PriceBook
from billing.price_book_file import given_book
from billing.quote import quote
from billing.rating import Facts
from billing.report import UsageQuery, usage_rows
from billing.rerating import RerateQuery, rerated_rows
from billing.terms import TermsSheet
from billing.usage import TenantId
from billing.wire import (
    end_time_of,
    invoice_message,
    outcome_message,
    period_of,
    quote_message,
    rerate_row_message,
    row_message,
    submission_of,
    tokens_of,
    verification_message,
    version_message,
)
from billing.wire_charges import charge_message, correction_charge
from billing.wire_correction import ask_of, corrected_message
from billing.wire_event import entry_message
from billing.wire_proof import checkpoint_message, key_message, trust_of
from kvtier.v1 import usage_pb2, usage_pb2_grpc

__all__ = ["EVENTS_MAX", "UsageParts", "UsageServicer"]

EVENTS_MAX = 1_000
"""Of one RecordUsage call, as the contract says."""

RECORDING_MAX = 128
"""Calls that record at a time; one more is told to send again."""

READING_MAX = 64
"""Calls that read the ledger at a time."""

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UsageParts:
    """What the edge calls."""

    ledger: Ledger
    store: LedgerStore
    book: PriceBook
    terms: TermsSheet
    clock_ns: Callable[[], int]
    metrics: BillingMetrics
    intake: Executor
    """Converts events; one thread."""
    readers: Executor
    """Read the ledger for reports and invoices."""
    verifier: Executor
    """Walks the ledger, or rates a period anew; one thread, so that it keeps no report waiting."""
    stopping: threading.Event
    """Set when the service ends: a walk gives up."""


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Counts the calls under way; holds no other state."""

    def __init__(self, parts: UsageParts) -> None:
        self._parts = parts
        self._recording = Places(RECORDING_MAX)
        self._reading = Places(READING_MAX)

    async def RecordUsage(
        self, request: usage_pb2.RecordUsageRequest, context: Context
    ) -> usage_pb2.RecordUsageResponse:
        started = time.monotonic()
        if len(request.events) > EVENTS_MAX:
            raise TooManyEventsError(
                f"{len(request.events)} events in a call; send at most {EVENTS_MAX}",
                events_max=EVENTS_MAX,
            )
        with self._recording.one():
            submissions = await self._off_loop(
                self._parts.intake, lambda: [submission_of(event) for event in request.events]
            )
            outcomes = await asyncio.wrap_future(self._parts.ledger.record(submissions))
            response = await self._off_loop(
                self._parts.intake,
                lambda: usage_pb2.RecordUsageResponse(outcomes=map(outcome_message, outcomes)),
            )
        self._parts.metrics.recorded(time.monotonic() - started)
        return response

    async def RateUsage(
        self, request: usage_pb2.RateUsageRequest, context: Context
    ) -> usage_pb2.RateUsageResponse:
        end_time_ns = end_time_of(request)
        if end_time_ns is None:
            end_time_ns = self._parts.clock_ns()
        facts = Facts(request.model, tokens_of(request.tokens), end_time_ns, request.service_class)
        return quote_message(quote(self._parts.book, facts))

    async def GetUsage(
        self, request: usage_pb2.GetUsageRequest, context: Context
    ) -> usage_pb2.GetUsageResponse:
        query = UsageQuery(
            tenant_id=request.tenant_id,
            project_id=request.project_id,
            period=period_of(request),
            group_by=tuple(request.group_by),
        )

        def report(connection: Connection) -> usage_pb2.GetUsageResponse:
            rows: Iterable[usage_pb2.UsageRow] = (
                row_message(row, query.group_by) for row in usage_rows(connection, query)
            )
            return usage_pb2.GetUsageResponse(rows=rows)

        return await self._read(report)

    async def GetInvoice(
        self, request: usage_pb2.GetInvoiceRequest, context: Context
    ) -> usage_pb2.GetInvoiceResponse:
        tenant, period = TenantId(request.tenant_id), period_of(request)
        invoice = await self._read(
            lambda connection: invoice_message(
                invoice_of(connection, tenant, period, self._parts.terms)
            )
        )
        return usage_pb2.GetInvoiceResponse(invoice=invoice)

    async def ListCharges(
        self, request: usage_pb2.ListChargesRequest, context: Context
    ) -> usage_pb2.ListChargesResponse:
        period = period_of(request)

        def look_up(connection: Connection) -> usage_pb2.ListChargesResponse:
            found = charges_of(connection, period, request.tenant_id, request.project_id)
            return usage_pb2.ListChargesResponse(
                charges=(
                    *map(charge_message, found.rows),
                    *map(correction_charge, found.corrections),
                ),
                unrated_request_count=found.unrated_request_count,
            )

        return await self._read(look_up)

    async def CorrectUsage(
        self, request: usage_pb2.CorrectUsageRequest, context: Context
    ) -> usage_pb2.CorrectUsageResponse:
        made = await asyncio.wrap_future(self._parts.ledger.correct(ask_of(request)))
        return corrected_message(made)

    async def FindUsageEvents(
        self, request: usage_pb2.FindUsageEventsRequest, context: Context
    ) -> usage_pb2.FindUsageEventsResponse:
        def look_up(connection: Connection) -> usage_pb2.FindUsageEventsResponse:
            found = found_entries(connection, request.id, request.tenant_id, request.project_id)
            return usage_pb2.FindUsageEventsResponse(entries=map(entry_message, found))

        return await self._read(look_up)

    async def RerateUsage(
        self, request: usage_pb2.RerateUsageRequest, context: Context
    ) -> usage_pb2.RerateUsageResponse:
        query = RerateQuery(request.tenant_id, period_of(request), tuple(request.group_by))
        stopping = self._parts.stopping.is_set

        def rerate() -> usage_pb2.RerateUsageResponse:
            book = given_book(request.price_book, request.price_book_name)
            rows = self._parts.store.read(
                lambda connection: rerated_rows(connection, query, book, stopping)
            )
            return usage_pb2.RerateUsageResponse(
                rows=(rerate_row_message(row, query.group_by) for row in rows)
            )

        with self._reading.one():
            return await self._off_loop(self._parts.verifier, rerate)

    async def VerifyLedger(
        self, request: usage_pb2.VerifyLedgerRequest, context: Context
    ) -> usage_pb2.VerifyLedgerResponse:
        trust = trust_of(request)

        def walk() -> usage_pb2.VerifyLedgerResponse:
            committed = self._parts.ledger.head
            found = self._parts.store.read(
                lambda connection: verify_ledger(
                    connection, committed, self._parts.stopping.is_set, trust
                )
            )
            return verification_message(found)

        with self._reading.one():
            return await self._off_loop(self._parts.verifier, walk)

    async def GetCheckpoint(
        self, request: usage_pb2.GetCheckpointRequest, context: Context
    ) -> usage_pb2.GetCheckpointResponse:
        made = await asyncio.wrap_future(self._parts.ledger.checkpoint())
        keys = {key.key_id: key.public_key for key in self._parts.ledger.keys}
        message = checkpoint_message(made, keys[made.key_id])
        return usage_pb2.GetCheckpointResponse(checkpoint=message)

    async def GetLedgerKeys(
        self, request: usage_pb2.GetLedgerKeysRequest, context: Context
    ) -> usage_pb2.GetLedgerKeysResponse:
        return usage_pb2.GetLedgerKeysResponse(keys=map(key_message, self._parts.ledger.keys))

    async def RotateLedgerKey(
        self, request: usage_pb2.RotateLedgerKeyRequest, context: Context
    ) -> usage_pb2.RotateLedgerKeyResponse:
        key = await asyncio.wrap_future(self._parts.ledger.rotate_key())
        return usage_pb2.RotateLedgerKeyResponse(key=key_message(key))

    async def GetPriceBook(
        self, request: usage_pb2.GetPriceBookRequest, context: Context
    ) -> usage_pb2.GetPriceBookResponse:
        versions = map(version_message, self._parts.book.versions)
        return usage_pb2.GetPriceBookResponse(versions=versions)

    async def _read(self, query: Callable[[Connection], Result]) -> Result:
        with self._reading.one():
            return await self._off_loop(self._parts.readers, lambda: self._parts.store.read(query))

    def _off_loop(self, executor: Executor, call: Callable[[], Result]) -> Awaitable[Result]:
        return asyncio.get_running_loop().run_in_executor(executor, call)
