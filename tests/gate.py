"""A server behind a gate, for tests of the gate."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from kvtier.access import Access, CallLimits, Rule, caller, own_tenant_only, rules
from kvtier.errors import read_error
from kvtier.principals import EVERY_ROLE, Principal, Role
from kvtier.serving import GrpcServer
from kvtier.v1 import cache_pb2, cache_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.pki import Pki

SERVICE = "kvtier.v1.UsageService"
DAY = 86_400.0
LIMITS = CallLimits(calls_max=3, calls_per_session_max=2, first_message_seconds=600)
ROOMY = replace(LIMITS, calls_max=100)
TOO_MANY = ("TOO_MANY_CALLS", grpc.StatusCode.RESOURCE_EXHAUSTED)


class Servicer(usage_pb2_grpc.UsageServiceServicer):
    """GetUsage answers who called; GetInvoice waits until it is told to go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = 0
        self.callers: list[str] = []

    async def GetUsage(self, request: Any, context: Any) -> Any:
        self.callers.append(caller().key)
        return usage_pb2.GetUsageResponse()

    async def GetInvoice(self, request: Any, context: Any) -> Any:
        self.waiting += 1
        await self.go.wait()
        return usage_pb2.GetInvoiceResponse()


class Stores(cache_pb2_grpc.CacheServiceServicer):
    """StoreBlocks reads to the end."""

    def __init__(self) -> None:
        self.messages = 0

    async def StoreBlocks(self, requests: Any, context: Any) -> Any:
        async for _ in requests:
            self.messages += 1
        return cache_pb2.StoreBlocksResponse()


class Notes:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.lines: list[tuple[frozenset[Role], str, str, str]] = []
        self.keys: set[str] = set()

    @contextlib.asynccontextmanager
    async def call(self, principal: Principal, method: str, request: Any) -> AsyncIterator[None]:
        self.lines.append((principal.roles, method, "begun", ""))
        yield

    async def refused(self, principal: Principal, method: str, reason: str) -> None:
        self.keys.add(principal.key)
        self.lines.append((principal.roles, method, "refused", reason))


class Gate:
    """A server behind a gate, whose clock is `now`."""

    def __init__(self, pki: Pki, limits: CallLimits = LIMITS, more: Any = None) -> None:
        self.notes = Notes()
        self.pki = pki
        self.servicer = Servicer()
        self.stores = Stores()
        self.offset_seconds = 0.0
        table = rules(
            SERVICE,
            GetUsage=Rule(EVERY_ROLE - {Role.ENGINE}),
            GetInvoice=Rule(frozenset({Role.BILLER})),
        ) | rules("kvtier.v1.CacheService", StoreBlocks=Rule(frozenset({Role.ENGINE})))
        table |= more or {}
        access = Access(table, pki.security, own_tenant_only(table), self.notes, limits)
        self.server = GrpcServer({}, access, self.now)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self.servicer, self.server.server)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self.stores, self.server.server)

    def now(self) -> float:
        return time.time() + self.offset_seconds

    def channel(self, *uris: str, days: float = 1) -> Any:
        return grpc.aio.secure_channel(self.address, self.pki.client(*uris, days=days))

    def stub(self, *uris: str, days: float = 1) -> Any:
        return usage_pb2_grpc.UsageServiceStub(self.channel(*uris, days=days))


StartGate = Callable[..., Awaitable[Gate]]


async def reason(call: Any) -> tuple[str, grpc.StatusCode]:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    wire = read_error(caught.value)
    return wire.reason, wire.code


def usage(tenant: str = "") -> Any:
    return usage_pb2.GetUsageRequest(tenant_id=tenant)


async def until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come to hold")
