"""Composition root: the only place that builds a worker's parts, in this order, and takes them down
in the reverse one.

    secret, journal -> model -> tokenizer, shared prefixes -> cache client -> engine -> budgets ->
    desk -> gRPC

Draining: refuse new requests, let running ones end (bounded), end the rest as cancelled, stop the
engine, deliver what billing takes in time, close the journal. Nothing is lost when it is cut short:
the journal has it. Main thread and its event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import torch
from google.protobuf.duration_pb2 import Duration

from journal.delivery import DeliverySettings
from journal.journal import JournalLimits
from kvtier.access import Access
from kvtier.breaker import Breaker
from kvtier.collecting import leave_out_of_collections
from kvtier.metrics_page import serve_metrics
from kvtier.serving import GrpcServer
from kvtier.settings import SettingsError
from kvtier.v1 import (
    describe_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    receipt_opening_pb2_grpc,
)
from worker.adapter_ports import AdapterPorts
from worker.attribution import request_check
from worker.budget_client import BudgetClient
from worker.budget_gate import Allowance, BudgetGate
from worker.cache_client import CacheClient
from worker.cache_port import CachePort
from worker.chat import load_prompt_encoder
from worker.describe import DESCRIBE_SERVICE, DescribeServicer
from worker.device_copies import copy_lanes, registered_for
from worker.engine import Engine
from worker.engine_settings import EngineSettings
from worker.metrics import WorkerMetrics
from worker.model_loader import LoadedModel, load_model
from worker.peers import Peers, peers_of
from worker.receipt_opening import OPENING_SERVICE, OpeningServicer
from worker.registered_memory import RegisteredMemory
from worker.request_checks import ModelLimits
from worker.request_desk import DeskLimits, RequestDesk
from worker.requests import EngineUsage
from worker.roles import RULES
from worker.servicer import InferenceServicer
from worker.settings import CacheSettings, WorkerSettings
from worker.shared_prefixes import load_shared_prefixes
from worker.status import STATUS_TABLE
from worker.tenants import Tenants, load_scope_secret, make_scope_secret
from worker.usage_delivery import UsageDelivery
from worker.usage_event import UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox

__all__ = ["RunningWorker", "start_worker"]

log = logging.getLogger(__name__)

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

SETTLE_SECONDS_MAX = 3.0
"""After the drain: until cancelled requests have their events."""

RELEASE_SECONDS_AT_END = 1.0
"""At the end: until billing knows what was not served. It ends by itself later."""

FLUSH_SECONDS_MAX = 3.0
"""At the end: until billing has the last events. The journal keeps what it does not take."""


@dataclass(slots=True)
class RunningWorker:
    """A worker that serves; `drain` ends it."""

    listen: str
    """The address really bound."""
    model: str
    failed: asyncio.Event
    """Set when the engine gave up: nothing will be served any more, only `drain` is left."""
    _parts: AsyncExitStack

    async def drain(self) -> None:
        await self._parts.aclose()


async def start_worker(settings: WorkerSettings) -> RunningWorker:
    """Builds and starts everything.

    Raises SettingsError, AddressInUseError, TlsRequiredError, TlsFileError, and of
    `worker.errors`: CheckpointError, ArchitectureRefusedError, AdapterError, AdapterRefusedError,
    SelfTestFailedError, DeterminismRefusedError, DeviceUnavailableError, JournalLockedError,
    JournalDirectoryError.
    """
    async with AsyncExitStack() as parts:
        return await _build(settings, parts)


async def _build(settings: WorkerSettings, parts: AsyncExitStack) -> RunningWorker:
    peers = peers_of(settings)
    metrics = WorkerMetrics()
    tenants = Tenants(settings.tenants, _scope_secret(settings))
    journal = _open_journal(settings, metrics)
    parts.callback(journal.close)
    delivery = _start_delivery(settings, peers, journal, metrics)
    if delivery is not None:
        parts.push_async_callback(_stop_delivery, delivery)

    if settings.threads:
        torch.set_num_threads(settings.threads)
    loaded = _load_model(settings)
    encoder = load_prompt_encoder(settings.model)
    prefixes = load_shared_prefixes(
        settings.public_prefix_directory, settings.organisation_prefix_directory, encoder
    )
    registered = registered_for(loaded.model.device)
    cache = _connect_cache(settings, peers, loaded, registered)
    if cache is not None:
        parts.callback(cache.close)
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()
    engine = _make_engine(
        settings, loaded, cache, registered, lambda: loop.call_soon_threadsafe(failed.set)
    )
    engine.start()
    parts.push_async_callback(asyncio.to_thread, engine.stop)
    metrics.watch_engine(engine.stats)

    def on_end(event: UsageEvent, usage: EngineUsage) -> None:
        metrics.ended(event, usage)
        if delivery is not None:
            delivery.wake()

    budget = _open_budget(settings, peers, metrics, parts)
    desk = RequestDesk(
        limits=DeskLimits(
            node=settings.node,
            block_tokens=loaded.block_tokens,
            stop_token_ids=loaded.stop_token_ids,
            deadline_seconds=settings.request_deadline_seconds,
            encoding_max=settings.queue.encoding_requests_max,
            ttl_classes=settings.cache.ttl_classes,
            digests_max=settings.journal.proof_digests_max,
        ),
        model=ModelLimits(
            model=loaded.name,
            context_tokens=loaded.context_tokens,
            vocabulary_size=loaded.vocabulary_size,
            default_completion_tokens=settings.default_completion_tokens,
            adapters=frozenset(loaded.adapted),
        ),
        encoder=encoder,
        tenants=tenants,
        prefixes=prefixes,
        engine=engine,
        journal=journal,
        on_end=on_end,
        namespace_of=loaded.namespace_of,
        budget=budget,
    )
    parts.callback(desk.close)
    parts.push_async_callback(_end_requests, desk, engine)

    def describe() -> inference_pb2.GetModelResponse:
        return _describe(loaded, engine, cache, settings.cache)

    check, limits = request_check(), settings.call_limits
    server = GrpcServer(STATUS_TABLE, Access(RULES, settings.security, check, limits=limits))
    parts.push_async_callback(server.drain, settings.drain_seconds)
    parts.callback(desk.drain)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(
        InferenceServicer(desk, describe, metrics.refused), server.server
    )
    describe_pb2_grpc.add_DescribeServiceServicer_to_server(
        DescribeServicer(
            desk,
            engine,
            loaded.namespace_of,
            loaded.block_bytes,
            whole_units=settings.cache.units.whole,
            grid=loaded.grid,
        ),
        server.server,
    )
    receipt_opening_pb2_grpc.add_ReceiptOpeningServiceServicer_to_server(
        OpeningServicer(tenants), server.server
    )
    if settings.metrics_listen:
        _, stop_page = serve_metrics(settings.metrics_listen, metrics.registry)
        parts.callback(stop_page)
    leave_out_of_collections(parts)
    bound = await server.start(settings.addresses, [SERVICE, DESCRIBE_SERVICE, OPENING_SERVICE])
    log.info(
        "worker ready",
        extra={
            "model": loaded.name,
            "listen": bound[0],
            "attention": loaded.attention.name,
            "why": loaded.attention.why,
            "deterministic": loaded.namespace.engine if loaded.grid.fixed else "no",
        },
    )
    return RunningWorker(bound[0], loaded.name, failed, parts.pop_all())


async def _end_requests(desk: RequestDesk, engine: Engine) -> None:
    """Cancelled requests first, then offers to the cache, then what only a stop can end."""
    await desk.settle(SETTLE_SECONDS_MAX)
    await asyncio.to_thread(engine.drain, SETTLE_SECONDS_MAX)
    await asyncio.to_thread(engine.stop)
    if not await desk.settle(SETTLE_SECONDS_MAX):
        log.error("requests without an end; the next start closes them without charge")


def _scope_secret(settings: WorkerSettings) -> bytes:
    if settings.scope_secret_file is not None:
        return load_scope_secret(settings.scope_secret_file)
    return make_scope_secret(settings.data_directory / "scope_secret")


def _open_journal(settings: WorkerSettings, metrics: WorkerMetrics) -> UsageJournal:
    journal = UsageJournal(
        settings.data_directory / "journal",
        JournalLimits(capacity_bytes=settings.journal.capacity_bytes),
    )
    opening = journal.opening
    if opening.lost_count or opening.torn_bytes or opening.damaged_bytes:
        log.warning(
            "the worker before this one did not end well",
            extra={
                "lost_requests": opening.lost_count,
                "torn_bytes": opening.torn_bytes,
                "damaged_bytes": opening.damaged_bytes,
            },
        )
    undelivered = opening.undelivered_count + opening.lost_count
    metrics.watch_journal(lambda: journal.used_bytes, undelivered)
    return journal


def _start_delivery(
    settings: WorkerSettings, peers: Peers, journal: UsageJournal, metrics: WorkerMetrics
) -> UsageDelivery | None:
    if not settings.billing.address:
        return None
    outbox = UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )
    delivery = UsageDelivery(
        outbox,
        DeliverySettings(
            settings.billing.address,
            credentials=peers.billing,
            call_timeout_seconds=settings.billing.call_timeout_seconds,
            backoff_seconds_max=settings.billing.backoff_seconds_max,
        ),
        metrics,
    )
    delivery.start()
    return delivery


async def _stop_delivery(delivery: UsageDelivery) -> None:
    if not await delivery.flush(FLUSH_SECONDS_MAX):
        log.warning("usage events stay in the journal until the next start")
    await delivery.stop()


def _open_budget(
    settings: WorkerSettings, peers: Peers, metrics: WorkerMetrics, parts: AsyncExitStack
) -> BudgetGate | None:
    said = settings.budget
    if not said.enforce:
        return None
    client = BudgetClient(settings.billing.address, peers.billing, metrics.release_given_up)
    client.start()
    parts.push_async_callback(client.close, RELEASE_SECONDS_AT_END)
    metrics.watch_releases(lambda: client.waiting_releases)
    allowance = None
    if said.when_unavailable == "admit":
        allowance = Allowance(said.allowance_requests, said.allowance_tokens)
    return BudgetGate(client, metrics, said.timeout_seconds, allowance)


def _load_model(settings: WorkerSettings) -> LoadedModel:
    loaded = load_model(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        block_tokens=settings.pool.block_tokens,
        rope_regime=settings.rope_regime,
        adapter=settings.adapter,
        deterministic_tokens=settings.step_tokens if settings.deterministic else None,
        adapters=settings.adapters,
        adapter_bytes_max=settings.adapter_bytes_max,
    )
    regime = loaded.regime
    if regime.context_tokens < regime.model_context_tokens:
        log.warning(
            "the model's context ends where its RoPE changes; rope_regime=long has the rest",
            extra={
                "context_tokens": regime.context_tokens,
                "model_context_tokens": regime.model_context_tokens,
            },
        )
    return loaded


def _connect_cache(
    settings: WorkerSettings, peers: Peers, loaded: LoadedModel, registered: RegisteredMemory | None
) -> CachePort | None:
    if not settings.cache.address:
        return None
    breaker = Breaker(time.monotonic)

    def connect(adapter: str) -> CachePort:
        return CacheClient(
            settings.cache.address,
            namespace_id=loaded.namespace_of(adapter).id,
            block_bytes=loaded.block_bytes,
            block_tokens=loaded.block_tokens,
            client_name=settings.node,
            transport=settings.cache.transport,
            credentials=peers.cache,
            lane_tls=peers.cache_lane,
            breaker=breaker,
            copy_lanes=copy_lanes(loaded.model.device),
            registered=registered,
            model=f"{loaded.name}:{adapter}" if adapter else loaded.name,
        )

    return AdapterPorts(connect) if loaded.adapted else connect("")


def _make_engine(
    settings: WorkerSettings,
    loaded: LoadedModel,
    cache: CachePort | None,
    registered: RegisteredMemory | None,
    on_failure: Callable[[], object],
) -> Engine:
    engine_settings = EngineSettings(
        page_bytes=settings.pool.page_bytes,
        step_tokens=settings.step_tokens,
        prompt_step_tokens=settings.prompt_step_tokens,
        running_requests_max=settings.queue.running_requests_max,
        waiting_requests_max=settings.queue.waiting_requests_max,
        load_timeout_seconds=settings.cache.load_timeout_seconds,
        age_limit_seconds=settings.queue.age_limit_seconds,
        units=settings.cache.units,
    )
    try:
        return Engine(loaded, engine_settings, cache, on_failure=on_failure, registered=registered)
    except ValueError as error:
        raise SettingsError(f"pool.page_bytes: {error}") from None


def _describe(
    loaded: LoadedModel,
    engine: Engine,
    cache: CachePort | None,
    settings: CacheSettings,
) -> inference_pb2.GetModelResponse:
    stats, whole = engine.stats(), settings.units.whole
    return inference_pb2.GetModelResponse(
        model=loaded.name,
        context_tokens=loaded.context_tokens,
        block_tokens=loaded.block_tokens,
        block_bytes=loaded.block_bytes,
        architecture=loaded.architecture,
        dtype=loaded.dtype,
        attention=loaded.attention.name,
        page_count=stats.page_count,
        free_page_count=stats.free_page_count,
        cache_connected=cache is not None and cache.connected(),
        ttl_classes={name: Duration(seconds=n) for name, n in settings.ttl_classes.items()},
        prefix_unit=settings.prefix_unit,
        prefix_unit_parts=settings.prefix_unit_parts if whole else (),
        prefix_unit_interval_tokens=settings.prefix_unit_interval_tokens if whole else 0,
        deterministic_piece_tokens=loaded.grid.piece_tokens,
        adapters=sorted(loaded.adapted),
    )
