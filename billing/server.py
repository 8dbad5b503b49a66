"""Composition root: the only place that builds the till's parts, in this order, and takes them down
in the reverse one.

    price book -> ledger (lock) -> ledger writer -> executors -> gRPC

Draining: say NOT_SERVING, give running calls `drain_seconds`, record what is queued, close the
ledger. Nothing is lost when it is cut short: workers keep what was not answered and send it again.
Main thread and its event loop.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from billing.attestation_servicer import AttestationServicer
from billing.budget_servicer import BudgetParts, BudgetServicer
from billing.ledger import Ledger
from billing.ledger_key import KeyFile
from billing.ledger_postgres import PostgresStore
from billing.ledger_signer import CheckpointRule, LedgerSigner
from billing.ledger_sqlite import SqliteStore
from billing.ledger_store import LedgerStore
from billing.metrics import BillingMetrics
from billing.price_book import settled
from billing.price_book_file import load_price_book
from billing.receipt_servicer import RECEIPT_SERVICE, ReceiptParts, ReceiptServicer
from billing.reservations import Reservations
from billing.roles import RULES
from billing.servicer import UsageParts, UsageServicer
from billing.settings import BillingSettings
from billing.status import STATUS_TABLE
from billing.terms_file import load_terms
from billing.usage_sums import stored_texts
from kvtier.access import Access, own_tenant_only
from kvtier.collecting import leave_out_of_collections
from kvtier.metrics_page import serve_metrics
from kvtier.serving import GrpcServer
from kvtier.tls import check_listeners
from kvtier.v1 import (
    attestation_pb2,
    attestation_pb2_grpc,
    budget_pb2,
    budget_pb2_grpc,
    receipt_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

__all__ = ["RunningBilling", "start_billing"]

log = logging.getLogger(__name__)

SERVICES = (
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
    budget_pb2.DESCRIPTOR.services_by_name["BudgetService"].full_name,
    RECEIPT_SERVICE,
    attestation_pb2.DESCRIPTOR.services_by_name["AttestationService"].full_name,
)

READER_THREADS = 2

NEW_OBJECTS = 20_000
"""Those of about two calls of events: with Python's 700 it looks at each call's a dozen times."""


@dataclass(slots=True)
class RunningBilling:
    """A till that serves; `drain` ends it."""

    listen: str
    """The address really bound."""
    _parts: AsyncExitStack

    async def drain(self) -> None:
        await self._parts.aclose()


async def start_billing(
    settings: BillingSettings, clock_ns: Callable[[], int] = time.time_ns
) -> RunningBilling:
    """Builds and starts everything.

    Raises AddressInUseError, TlsRequiredError, TlsFileError and of `billing.errors`:
    PriceBookError, TermsError, LedgerReadOnlyError, LedgerLockedError, LedgerTooNewError,
    LedgerForeignError, LedgerKeyError, LedgerUnavailableError.
    """
    async with AsyncExitStack() as parts:
        return await _build(settings, clock_ns, parts)


async def _build(
    settings: BillingSettings, clock_ns: Callable[[], int], parts: AsyncExitStack
) -> RunningBilling:
    check_listeners(settings.addresses, settings.security)
    metrics = BillingMetrics()
    book = load_price_book(settings.price_book)
    terms = load_terms(settings.terms)
    store = _store(settings)
    parts.callback(store.close)
    book = settled(book, store.read(stored_texts))
    grace = settings.budgets.settle_seconds
    ledger = Ledger(store, book, clock_ns, metrics, _signer(settings, store), grace)
    parts.push_async_callback(asyncio.to_thread, ledger.close)
    metrics.opened(ledger.head)
    edge = UsageParts(
        ledger=ledger,
        store=store,
        book=book,
        terms=terms,
        clock_ns=clock_ns,
        metrics=metrics,
        intake=_executor(parts, "intake", 1),
        readers=_executor(parts, "reader", READER_THREADS),
        verifier=_executor(parts, "verifier", 1),
        stopping=threading.Event(),
    )
    parts.callback(edge.stopping.set)
    check, limits = own_tenant_only(RULES), settings.call_limits
    server = GrpcServer(STATUS_TABLE, Access(RULES, settings.security, check, limits=limits))
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(edge), server.server)
    budgets = BudgetParts(ledger, store, clock_ns, edge.readers, Reservations(ledger), metrics)
    budget_pb2_grpc.add_BudgetServiceServicer_to_server(BudgetServicer(budgets), server.server)
    receipts = ReceiptParts(ledger, store, edge.readers)
    receipt_pb2_grpc.add_ReceiptServiceServicer_to_server(ReceiptServicer(receipts), server.server)
    attestations = AttestationServicer(edge)
    attestation_pb2_grpc.add_AttestationServiceServicer_to_server(attestations, server.server)
    if settings.metrics_listen:
        _, stop_page = serve_metrics(settings.metrics_listen, metrics.registry)
        parts.callback(stop_page)
    bound = await server.start(settings.addresses, SERVICES)
    parts.push_async_callback(server.drain, settings.drain_seconds)
    leave_out_of_collections(parts, NEW_OBJECTS)
    # The head's hash in a log kept elsewhere proves later that no entry was cut off the end.
    log.info(
        "billing ready",
        extra={
            "listen": bound[0],
            "ledger": store.place,
            "entry_count": ledger.head.position,
            "head_hash": ledger.head.hash.hex(),
            "key_id": ledger.keys[-1].key_id,
        },
    )
    return RunningBilling(bound[0], parts.pop_all())


def _store(settings: BillingSettings) -> LedgerStore:
    url = settings.database_url.get_secret_value()
    return PostgresStore(url) if url else SqliteStore(settings.data_directory)


def _signer(settings: BillingSettings, store: LedgerStore) -> LedgerSigner:
    said = settings.checkpoints
    return LedgerSigner(
        store.ledger_id,
        KeyFile(settings.data_directory),
        CheckpointRule(said.entries, said.seconds),
        accept_new_key=said.accept_new_key,
    )


def _executor(parts: AsyncExitStack, name: str, threads: int) -> ThreadPoolExecutor:
    """The servicer bounds what waits there: see its limits on calls."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix=f"billing-{name}")
    parts.callback(executor.shutdown, wait=False, cancel_futures=True)
    return executor
