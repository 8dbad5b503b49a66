"""Composition root of the cache service: the only place that builds its parts and ends them.

    SSD tier (opened in a thread) -> arena -> core -> services, hand-over, ticker, metrics -> ready
    signal -> no new calls -> running ones end -> hand-over closes -> core drains to the SSD -> out

Invariant: everything started here is ended here, in the reverse order, within `drain_seconds` a
step; a start that fails half way ends what it had started. One event loop, the main thread's.
"""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from cache_service.attest.metrics import AttestMetrics
from cache_service.attest.opening import Attestation
from cache_service.audit.log import AuditLog
from cache_service.bulk.listener import BulkListener
from cache_service.bulk.transfers import BulkPlace
from cache_service.cache import Cache
from cache_service.edge.line_calls import LineCalls
from cache_service.edge.owners import own_session_only
from cache_service.edge.services import services
from cache_service.handover import ArenaHandover
from cache_service.intake import StreamIntake
from cache_service.master_keys import encryption_of
from cache_service.metering.metering import steady_clock_ns
from cache_service.metrics import CallMetrics, MetricsListener, MetricsPage
from cache_service.roles import RULES
from cache_service.servicer import CacheServicer
from cache_service.settings import CacheSettings
from cache_service.shared_opening import open_shared_tier
from cache_service.status import STATUS_TABLE
from journal.delivery import DeliverySettings
from journal.journal import JournalLimits
from kvtier.access import Access
from kvtier.collecting import leave_out_of_collections
from kvtier.serving import GrpcServer, until_signalled
from kvtier.tls import check_listeners, peer_credentials, server_context
from storage.errors import DirectoryFullError, DirectoryReadOnlyError
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier

__all__ = ["CacheServer", "serve"]

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2

COLLECT_SECONDS = 10.0
"""Between collections of cycles. Python alone would wait for minutes, with tens of megabytes lying
about; done often, each finds little and takes milliseconds."""

_ANY_HOST = ("", "0.0.0.0", "::")
WRITE_OUT_SHARE = 0.8
"""Of `drain_seconds`: for blocks that only host memory has. The rest is for closing the tier."""


class CacheServer:
    """A running cache service. `start` once, then `stop` once."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.listen = ""
        """The address really bound, once started."""
        self.metrics_listen = ""
        """The metrics page's, when there is one."""
        self.cache: Cache | None = None
        """The core, once started; its loop's alone."""
        self.bulk_listen = ""
        """The bulk lane's, when there is one."""

    async def start(self) -> None:
        """Returns when calls are served. Raises KvtierError subclasses; nothing then runs."""
        async with AsyncExitStack() as stack:
            await self._build(stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Drains: ends calls and sessions, writes pending blocks to the SSD, closes everything."""
        await self._stack.aclose()

    async def _build(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        bulk_addresses = [settings.bulk.listen] if settings.bulk.listen else []
        check_listeners([*settings.addresses, *bulk_addresses], settings.security)
        _make_directory(settings.data_directory)
        _make_directory(settings.arena_socket_path.parent)
        registry, intake = CollectorRegistry(), StreamIntake()
        attestation = self._open_attestation(stack, registry)
        cache = await self._build_cache(stack, MetricsListener(registry, intake))
        self.cache = cache
        if attestation is not None:
            cache.attest(await attestation.start(cache.instance_id))
            if settings.metering.storage:
                interval = settings.metering.interval_seconds
                attestation.meter_storage(cache, steady_clock_ns(), interval)

        if settings.metrics_listen:
            count = settings.metrics_owners_max
            page = MetricsPage(
                registry,
                cache.stats,
                lambda: cache.owners(count, tenants=True) if count else None,
            )
            stack.push_async_callback(page.stop)
            self.metrics_listen = page.start(settings.metrics_listen)

        ticker = asyncio.create_task(_tick(cache))
        stack.push_async_callback(_cancel, ticker)

        audit = AuditLog(settings.data_directory / "audit")
        stack.push_async_callback(audit.close, settings.drain_seconds)
        check, limits = own_session_only(cache), settings.call_limits
        access = Access(RULES, settings.security, check, audit, limits)
        grpc_server = GrpcServer(STATUS_TABLE, access)
        registry.register(CallMetrics(grpc_server.calls))
        servicer = CacheServicer(cache, intake, str(settings.arena_socket_path))
        line_calls = LineCalls(servicer, grpc_server.errors, grpc_server.calls)
        if settings.bulk.listen:
            self.bulk_listen = self._start_bulk(stack, cache, line_calls)
        handover = ArenaHandover(settings.arena_socket_path, cache.arena.fd, cache, line_calls)
        handover.start()
        stack.push_async_callback(handover.stop)
        stack.push_async_callback(line_calls.ended, settings.drain_seconds)
        served = services(cache, servicer)
        for service in served:
            service.add_to(grpc_server.server)
        stack.push_async_callback(grpc_server.drain, settings.drain_seconds)
        stack.callback(line_calls.drain)
        for service in served:
            stack.callback(service.before_drain)
        names = [service.name for service in served]
        self.listen = (await grpc_server.start(settings.addresses, names))[0]

    def _open_attestation(
        self, stack: AsyncExitStack, registry: CollectorRegistry
    ) -> Attestation | None:
        settings = self._settings
        billing, metrics = settings.billing, AttestMetrics(registry)
        if not billing.address:
            return None
        credentials = peer_credentials(
            "billing.address", billing.address, settings.client, settings.security.development
        )
        attestation = Attestation(
            settings.data_directory / "attestations",
            settings.node,
            JournalLimits(capacity_bytes=settings.journal.capacity_bytes),
            DeliverySettings(
                billing.address,
                credentials=credentials,
                call_timeout_seconds=billing.call_timeout_seconds,
                backoff_seconds_max=billing.backoff_seconds_max,
            ),
            metrics,
        )
        stack.push_async_callback(attestation.stop)
        return attestation

    def _start_bulk(self, stack: AsyncExitStack, cache: Cache, calls: LineCalls) -> str:
        settings = self._settings
        tls = server_context(settings.security)
        listener = BulkListener(
            settings.bulk.listen, tls, cache.bulk, calls, settings.bulk.connections_max
        )
        address = listener.start()
        stack.push_async_callback(listener.stop)
        host, _, port = address.rpartition(":")
        told = "" if host.strip("[]") in _ANY_HOST else host.strip("[]")
        cache.bulk.place = BulkPlace(told, int(port), tls is not None)
        return address

    async def _build_cache(self, stack: AsyncExitStack, listener: MetricsListener) -> Cache:
        settings = self._settings
        arena = HostArena(settings.host.capacity_bytes)
        stack.callback(arena.close)
        sizes = {"capacity_bytes": arena.capacity_bytes, "huge_page_bytes": arena.huge_bytes}
        log.info("arena ready", extra=sizes)
        ssd = await self._open_ssd() if settings.ssd.enabled else None
        budget = int(settings.ssd.scrub_bytes_per_second)
        limits = replace(
            settings.limits.core(),
            scrub_bytes_per_second=budget,
            write_out_seconds=WRITE_OUT_SHARE * settings.drain_seconds,
            events_retained=settings.events.retained,
            watchers_max=settings.events.watchers_max,
            watch_stall_seconds=settings.events.stall_seconds,
            pin_share_max=settings.pins.share_max,
            pin_seconds_max=settings.pins.seconds_max,
        )
        shared = open_shared_tier(settings.shared)
        if shared is not None:
            log.info("shared tier", extra={"engine": shared.label, "sealed": shared.sealed})
        policies = settings.policies
        cache = Cache(arena, ssd, limits, time.monotonic, listener, policies, shared=shared)
        leave_out_of_collections(stack)
        stack.push_async_callback(self._drain, cache)
        return cache

    async def _open_ssd(self) -> SsdTier:
        """Recovery reads the disk for as long as it takes; the loop stays free meanwhile."""
        ssd = await asyncio.to_thread(
            SsdTier.open,
            self._settings.data_directory / "ssd",
            capacity_bytes=self._settings.ssd.capacity_bytes,
            segment_bytes=self._settings.ssd.segment_bytes,
            codec=self._settings.ssd.codec,
            encryption=encryption_of(self._settings.ssd),
        )
        report = ssd.report
        log.info(
            "ssd opened",
            extra={
                "io_mode": ssd.io_mode,
                "kept_count": report.kept_count,
                "dropped_count": report.dropped_count,
                "repaired_count": report.repaired_count,
                "kept_bytes": report.kept_bytes,
                "duration_seconds": round(report.duration_seconds, 3),
            },
        )
        if ssd.encryption.enabled:
            keys = ssd.encryption
            log.info("ssd encrypts", extra={"master": keys.master, "data_keys": keys.key_count})
        if ssd.io_problem:
            log.warning(
                "the file system of the SSD tier refuses direct I/O, so its bytes go through the"
                " page cache, which takes memory and time; move data_directory to ext4 or xfs",
                extra={"data_directory": str(self._settings.data_directory), "why": ssd.io_problem},
            )
        for problem in report.problems:
            log.warning("ssd recovery: %s", problem)
        return ssd

    async def _drain(self, cache: Cache) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await cache.drain()
        except TimeoutError:
            log.warning(
                "drain cut short; blocks not yet on the SSD are lost",
                extra={"pending_write_count": cache.stats().pending_write_count},
            )


async def serve(settings: CacheSettings) -> None:
    """Serves until SIGTERM or SIGINT. Says on standard output, in one JSON line, when ready."""
    server = CacheServer(settings)
    await server.start()
    try:
        ready = {
            "ready": True,
            "listen": server.listen,
            "metrics_listen": server.metrics_listen or None,
            "bulk_listen": server.bulk_listen or None,
            "arena_socket": str(settings.arena_socket_path),
            "pid": os.getpid(),
        }
        print(json.dumps(ready), file=sys.stdout, flush=True)
        log.info("ready", extra={"listen": server.listen})
        name = await until_signalled()
        log.info("draining", extra={"signal": name})
    finally:
        await server.stop()
    log.info("stopped")


async def _tick(cache: Cache) -> None:
    collect_at = time.monotonic() + COLLECT_SECONDS
    while True:
        await asyncio.sleep(TICK_SECONDS)
        cache.tick()
        if time.monotonic() >= collect_at:
            gc.collect()
            collect_at = time.monotonic() + COLLECT_SECONDS


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _make_directory(path: Path) -> None:
    """Owner only. Raises DirectoryReadOnlyError, DirectoryFullError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        kind = DirectoryFullError if error.errno == errno.ENOSPC else DirectoryReadOnlyError
        raise kind(
            f"cannot make {path}: {error.strerror}; make that possible, or choose another with"
            " --set data_directory=DIR",
            path=path,
        ) from error
