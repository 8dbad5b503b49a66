"""The gate over a real server: calls are counted, and what stays open is bounded."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvtier.access import REFLECTIONS_PER_CALLER_MAX, Access, Rule
from kvtier.principals import EVERY_ROLE, Role, role_uri
from kvtier.tls import SecuritySettings
from kvtier.v1 import cache_pb2, cache_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.gate import LIMITS, ROOMY, TOO_MANY, Gate, StartGate, reason, until, usage


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


async def test_a_call_that_stands_apart_is_bounded_for_one_caller(start_gate: StartGate) -> None:
    gate = await start_gate(ROOMY, {WATCH: Rule(EVERY_ROLE, counted=False, per_caller_max=2)})
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


async def test_a_stream_without_a_message_counts_for_its_caller(start_gate: StartGate) -> None:
    gate = await start_gate(ROOMY)
    stub = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    calls = [stub.StoreBlocks() for _ in range(3)]
    await until(lambda: sum(call.done() for call in calls) == 1)
    (refused,) = (call for call in calls if call.done())
    assert await reason(refused) == TOO_MANY
    other = cache_pb2_grpc.CacheServiceStub(gate.channel(role_uri(Role.ENGINE)))
    await other.StoreBlocks(iter([store("c")]))


async def test_from_its_first_message_a_stream_counts_for_its_session(
    start_gate: StartGate,
) -> None:
    gate = await start_gate(ROOMY)
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


async def test_a_stream_must_say_something_in_time(start_gate: StartGate) -> None:
    gate = await start_gate(replace(LIMITS, first_message_seconds=0.05))
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
