"""The gate over a real server: who calls is asked anew with every call, and calls are counted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvtier.access import (
    REFLECTIONS_PER_CALLER_MAX,
    Access,
    CallLimits,
    Rule,
    ScopeNotAllowedError,
    caller,
    own_tenant_only,
    rules,
)
from kvtier.errors import read_error
from kvtier.principals import EVERY_ROLE, Principal, Role, grants, role_uri
from kvtier.serving import GrpcServer
from kvtier.tls import SecuritySettings
from kvtier.v1 import cache_pb2, cache_pb2_grpc, inference_pb2, usage_pb2, usage_pb2_grpc
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


class Gate:
    """A server behind a gate, whose clock is `now`."""

    def __init__(self, pki: Pki, limits: CallLimits = LIMITS, more: Any = None) -> None:
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
        access = Access(table, pki.security, own_tenant_only(table), limits=limits)
        self.server = GrpcServer({}, access, self.now)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self.servicer, self.server.server)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self.stores, self.server.server)

    def now(self) -> float:
        return time.time() + self.offset_seconds

    def channel(self, *uris: str, days: float = 1) -> Any:
        return grpc.aio.secure_channel(self.address, self.pki.client(*uris, days=days))

    def stub(self, *uris: str, days: float = 1) -> Any:
        return usage_pb2_grpc.UsageServiceStub(self.channel(*uris, days=days))


Start = Callable[..., Awaitable[Gate]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a gate with these limits."""
    started: list[Gate] = []

    async def make(*args: Any) -> Gate:
        made = Gate(Pki(tmp_path / "tls"), *args)
        (made.address,) = await made.server.start(["127.0.0.1:0"], [SERVICE])
        started.append(made)
        return made

    yield make
    for made in started:
        made.servicer.go.set()
        await made.server.drain(0)


@pytest.fixture
async def gate(start: Start) -> Gate:
    return await start()


async def reason(call: Any) -> tuple[str, grpc.StatusCode]:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    wire = read_error(caught.value)
    return wire.reason, wire.code


def usage(tenant: str = "") -> Any:
    return usage_pb2.GetUsageRequest(tenant_id=tenant)


async def test_a_certificate_that_ends_on_an_open_connection_ends_there(gate: Gate) -> None:
    stub = gate.stub(role_uri(Role.BILLER))
    await stub.GetUsage(usage())
    assert [len(key) for key in gate.servicer.callers] == [64]
    gate.offset_seconds = 2 * DAY
    expired = ("CERTIFICATE_EXPIRED", grpc.StatusCode.UNAUTHENTICATED)
    assert await reason(stub.GetUsage(usage())) == expired


async def test_a_call_without_a_row_is_nobodys(gate: Gate) -> None:
    stub = gate.stub(*(role_uri(role, ("a",) if role == "tenant" else ()) for role in Role))
    refused = ("ROLE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)
    assert await reason(stub.GetPriceBook(usage_pb2.GetPriceBookRequest())) == refused


async def test_a_tenant_names_itself_alone(gate: Gate) -> None:
    stub = gate.stub(role_uri(Role.TENANT, ["acme"]))
    await stub.GetUsage(usage("acme"))
    for other in ("", "web", "Acme", "acme "):
        refused = ("SCOPE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)
        assert await reason(stub.GetUsage(usage(other))) == refused


@pytest.mark.parametrize(
    ("scope", "path", "allowed"),
    [
        (["acme"], ("acme", "web", "ann"), True),
        (["acme", "web"], ("acme", "web", "ann"), True),
        (["acme", "web"], ("acme", "", ""), False),
        (["acme", "web"], ("acme", "api", "ann"), False),
        (["acme", "web", "ann"], ("acme", "web", "bob"), False),
        (["acme", "web", "ann", "more"], ("acme", "web", "ann"), False),
        (["acme/web"], ("acme", "web", ""), False),
    ],
)
def test_a_scope_holds_what_is_below_it(scope: list[str], path: Any, allowed: bool) -> None:
    roles, scopes = grants([role_uri(Role.TENANT, scope)])
    table = {"/m": Rule(frozenset({Role.TENANT}))}
    request = inference_pb2.GenerateRequest(tenant_id=path[0], project_id=path[1], user_id=path[2])
    expected = contextlib.nullcontext() if allowed else pytest.raises(ScopeNotAllowedError)
    with expected:
        own_tenant_only(table)(Principal("k", roles, scopes), "/m", request)


async def test_a_role_that_may_not_call_widens_nothing(gate: Gate) -> None:
    stub = gate.stub(role_uri(Role.TENANT, ["acme"]), role_uri(Role.ENGINE))
    refused = ("SCOPE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)
    assert await reason(stub.GetUsage(usage("globex"))) == refused


async def test_a_tenant_who_is_also_operator_names_anybody(gate: Gate) -> None:
    stub = gate.stub(role_uri(Role.TENANT, ["acme"]), role_uri(Role.OPERATOR))
    await stub.GetUsage(usage())


async def test_calls_at_a_time_are_bounded_for_one_caller_and_for_all(gate: Gate) -> None:
    request = usage_pb2.GetInvoiceRequest()
    one, other = gate.stub(role_uri(Role.BILLER)), gate.stub(role_uri(Role.BILLER))
    held = [asyncio.ensure_future(stub.GetInvoice(request)) for stub in (one, one)]
    await until(lambda: gate.servicer.waiting == 2)
    assert await reason(one.GetUsage(usage())) == TOO_MANY
    held.append(asyncio.ensure_future(other.GetInvoice(request)))
    await until(lambda: gate.servicer.waiting == 3)
    assert await reason(other.GetUsage(usage())) == TOO_MANY
    gate.servicer.go.set()
    await asyncio.gather(*held)
    await one.GetUsage(usage())


async def test_cancelled_calls_give_their_place_back(gate: Gate) -> None:
    stub = gate.stub(role_uri(Role.BILLER))
    for count in range(1, 8):
        call = stub.GetInvoice(usage_pb2.GetInvoiceRequest())
        await until(lambda: gate.servicer.waiting == count)  # noqa: B023
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await stub.GetUsage(usage())


async def test_reflection_that_says_nothing_takes_no_place_from_anybody(gate: Gate) -> None:
    channel = gate.channel(role_uri(Role.ENGINE))
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    idle = [stub.ServerReflectionInfo() for _ in range(REFLECTIONS_PER_CALLER_MAX + 3)]
    await until(lambda: sum(call.done() for call in idle) == 3)
    for call in idle:
        if call.done():
            assert await reason(call.read()) == TOO_MANY
    assert await health(channel) == SERVING
    biller = gate.channel(role_uri(Role.BILLER))
    await usage_pb2_grpc.UsageServiceStub(biller).GetUsage(usage())
    other = reflection_pb2_grpc.ServerReflectionStub(biller).ServerReflectionInfo()
    await other.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert (await other.read()).HasField("list_services_response")


async def test_health_is_told_to_whoever_has_too_many_calls(gate: Gate) -> None:
    channel = gate.channel(role_uri(Role.BILLER))
    stub = usage_pb2_grpc.UsageServiceStub(channel)
    held = [stub.GetInvoice(usage_pb2.GetInvoiceRequest()) for _ in range(2)]
    await until(lambda: gate.servicer.waiting == 2)
    watches = [
        health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        for _ in range(LIMITS.calls_max + 1)
    ]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    assert await health(channel) == SERVING
    # And watching takes no place from anybody.
    await gate.stub(role_uri(Role.BILLER)).GetUsage(usage())
    gate.servicer.go.set()
    await asyncio.gather(*held)


async def test_a_call_that_stands_apart_is_bounded_for_one_caller(start: Start) -> None:
    gate = await start(ROOMY, {WATCH: Rule(EVERY_ROLE, counted=False, per_caller_max=2)})
    one, other = gate.channel(role_uri(Role.ENGINE)), gate.channel(role_uri(Role.ENGINE))

    def watch(channel: Any) -> Any:
        return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

    open_ = [watch(one), watch(one)]
    for call in open_:
        assert (await call.read()).status == SERVING
    assert await reason(watch(one).read()) == TOO_MANY
    assert (await watch(other).read()).status == SERVING
    open_[0].cancel()
    await until_answered(lambda: watch(one).read())


@pytest.mark.parametrize(
    "service", ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
)
def test_whatever_stands_apart_and_stays_open_is_bounded(service: str) -> None:
    access = Access({}, SecuritySettings())
    for method in Default().FindServiceByName(service).methods:
        rule = access.rule(f"/{service}/{method.name}")
        assert not rule.counted
        stays_open = method.client_streaming or method.server_streaming
        assert (rule.per_caller_max is not None) == stays_open


async def test_a_stream_without_a_message_counts_for_its_caller(start: Start) -> None:
    gate = await start(ROOMY)
    stub = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    calls = [stub.StoreBlocks() for _ in range(3)]
    await until(lambda: sum(call.done() for call in calls) == 1)
    (refused,) = (call for call in calls if call.done())
    assert await reason(refused) == TOO_MANY
    other = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    await other.StoreBlocks(iter([store("c")]))


async def test_from_its_first_message_on_a_stream_counts_for_its_session(start: Start) -> None:
    gate = await start(ROOMY)
    stub = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    held = []
    for session in ("a", "a", "b"):  # one after the other: a caller may have two without any
        held.append(stub.StoreBlocks())
        await held[-1].write(store(session))
        await until(lambda: gate.stores.messages == len(held))
    for _ in range(4):
        assert await reason(stub.StoreBlocks(iter([store("a")]))) == TOO_MANY
    await held[0].done_writing()
    await held[0]
    await stub.StoreBlocks(iter([store("a")]))
    idle = [stub.StoreBlocks(), stub.StoreBlocks()]
    for call in idle:
        await call.write(store("c"))
    await until(lambda: gate.stores.messages == 6)


async def test_a_stream_must_say_something_in_time(start: Start) -> None:
    gate = await start(replace(LIMITS, first_message_seconds=0.05))
    channel = gate.channel(role_uri(Role.ENGINE))
    late = ("FIRST_MESSAGE_LATE", grpc.StatusCode.DEADLINE_EXCEEDED)
    for _ in range(LIMITS.calls_max + 1):  # each gives its place back
        assert await reason(cache_pb2_grpc.CacheServiceStub(channel).StoreBlocks()) == late
        idle = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        assert await reason(idle.read()) == late


async def test_a_stream_of_no_message_ends_as_its_handler_says(gate: Gate) -> None:
    stub = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    await stub.StoreBlocks(iter(()))


WATCH = "/grpc.health.v1.Health/Watch"
SERVING = health_pb2.HealthCheckResponse.SERVING


async def health(channel: Any) -> Any:
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status


def store(session: str) -> Any:
    return cache_pb2.StoreBlocksRequest(session_id=session)


async def until_answered(call: Callable[[], Any]) -> None:
    """A cancelled call gives its place back a little later."""
    for _ in range(1000):
        with contextlib.suppress(grpc.RpcError):
            await call()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("was never answered")


async def until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come to hold")
