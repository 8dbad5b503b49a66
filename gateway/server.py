"""Composition root: the only place that builds the gateway's parts, in this order, and takes them
down in the reverse one.

    keys -> workers (first look) -> admission -> HTTP face -> gRPC face

Draining: say not ready, refuse new requests, let running ones end (bounded), close what is left,
which cancels it at the workers. Main thread and its event loop.
"""

import asyncio
import contextlib
import logging
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import grpc

from gateway.admission import Admission
from gateway.balances import Balances
from gateway.body_reader import BodyReader
from gateway.exchange import ExchangeLimits
from gateway.front import Front
from gateway.grpc_face import GatewayServicer
from gateway.grpc_server import GrpcFace
from gateway.http_app import http_app
from gateway.http_server import HttpServer, bind
from gateway.key_file import KeyFile, KeyReader
from gateway.metrics import GatewayMetrics
from gateway.prefix_places import CacheViews
from gateway.router import Router
from gateway.settings import GatewaySettings
from gateway.workers import Workers
from kvtier.collecting import leave_out_of_collections
from kvtier.metrics_page import serve_metrics
from kvtier.tls import (
    TlsRequiredError,
    is_loopback,
    open_context,
    open_credentials,
    peer_credentials,
)

__all__ = ["RunningGateway", "start_gateway"]

log = logging.getLogger(__name__)

FIRST_LOOK_SECONDS_MAX = 5.0
"""At the workers. A gateway starts without them too, and is not ready."""

CUT_SECONDS_MAX = 2.0
"""Until those that are cut have been told."""


@dataclass(slots=True)
class RunningGateway:
    """A gateway that serves; `drain` ends it."""

    listen: str
    """HTTP: the address really bound."""
    grpc_listen: str
    """Empty: none."""
    metrics_listen: str
    """Empty: none."""
    ready: bool
    """Whether a worker answered by now."""
    _parts: AsyncExitStack

    async def drain(self) -> None:
        await self._parts.aclose()


async def start_gateway(settings: GatewaySettings) -> RunningGateway:
    """Builds and starts everything.

    Raises AddressInUseError, TlsRequiredError, TlsFileError, and of `gateway.errors`:
    KeysUnavailableError.
    """
    async with AsyncExitStack() as parts:
        return await _build(settings, parts)


async def _build(settings: GatewaySettings, parts: AsyncExitStack) -> RunningGateway:
    context, credentials = _own_tls(settings)
    metrics = GatewayMetrics()
    development = settings.security.development
    to_peer = partial(peer_credentials, tls=settings.client, development=development)
    views = CacheViews(
        settings.caches, {at: to_peer("caches", at) for at in settings.caches.values()}
    )
    router = Router(views, on_undescribed=metrics.undescribed)
    workers = Workers(settings.workers, partial(to_peer, "workers"), router, metrics.retried)
    parts.push_async_callback(workers.close)
    for worker in workers.all:
        metrics.watch_worker(worker)
    metrics.watch_caches(views.current_count)
    reader = KeyReader(KeyFile(settings.keys_path))
    limits = settings.limits
    admission = Admission(limits.requests_max, limits.requests_per_key_max)
    metrics.watch_running(lambda: admission.count)
    front = Front(reader, admission)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_LOOK_SECONDS_MAX):
            await workers.poll()
    balances = _balances(settings, parts)
    views.start()
    parts.push_async_callback(views.stop)
    polling = asyncio.create_task(workers.run(), name="worker polls")
    parts.push_async_callback(_ended, polling)

    listener, listen = bind(settings.listen)
    parts.callback(listener.close)
    bodies = BodyReader()
    parts.callback(bodies.close)
    app = http_app(
        front,
        workers,
        bodies,
        metrics,
        ExchangeLimits(
            limits.body_bytes_max,
            limits.body_seconds_max,
            settings.heartbeat_seconds,
            settings.stall_seconds,
        ),
        settings.request_seconds_max,
        balances,
    )
    http = HttpServer(app, listener, context, limits.body_bytes_max)
    servicer = GatewayServicer(front, workers, metrics, settings.request_seconds_max)
    face = GrpcFace(servicer, limits.body_bytes_max) if settings.grpc_listen else None
    metrics_listen = ""
    if settings.metrics_listen:
        metrics_listen, stop_page = serve_metrics(settings.metrics_listen, metrics.registry)
        parts.callback(stop_page)
    leave_out_of_collections(parts)
    await http.start()
    parts.push_async_callback(http.stop)
    grpc_listen = ""
    if face is not None:
        grpc_listen = await face.start(settings.grpc_listen, credentials)
        parts.push_async_callback(face.stop)
    parts.push_async_callback(_settle, admission, workers, face, settings.drain_seconds)
    log.info(
        "gateway ready",
        extra={
            "listen": listen,
            "grpc_listen": grpc_listen,
            "tls": context is not None,
            "keys": len(reader.ring().keys),
            "workers": len(workers.all),
        },
    )
    return RunningGateway(listen, grpc_listen, metrics_listen, workers.ready, parts.pop_all())


async def _settle(
    admission: Admission, workers: Workers, face: GrpcFace | None, seconds: float
) -> None:
    admission.drain()
    if face is not None:
        await face.drain()
    if not await admission.idle(seconds):
        log.warning("requests are cut", extra={"running_count": admission.count})
        workers.cut()
        await admission.idle(CUT_SECONDS_MAX)


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _own_tls(
    settings: GatewaySettings,
) -> tuple[ssl.SSLContext | None, grpc.ServerCredentials | None]:
    """Raises TlsRequiredError, TlsFileError."""
    security = settings.security
    if security.certificate_file is not None and security.key_file is not None:
        pair = security.certificate_file, security.key_file
        return open_context(*pair), open_credentials(*pair)
    for address in (settings.listen, settings.grpc_listen):
        if address and not is_loopback(address):
            raise TlsRequiredError(
                f"will not listen on {address} in clear, where API keys could be read: set"
                " security.certificate_file and security.key_file, or listen on loopback",
                address=address,
            )
    return None, None


def _balances(settings: GatewaySettings, parts: AsyncExitStack) -> Balances | None:
    address = settings.billing.address
    if not address:
        return None
    development = settings.security.development
    credentials = peer_credentials("billing.address", address, settings.client, development)
    balances = Balances(address, credentials)
    parts.push_async_callback(balances.close)
    return balances
