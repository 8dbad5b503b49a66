"""The gate over a real server: who calls is asked anew with every call, and calls are counted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.access import (
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
from kvtier.v1 import inference_pb2, usage_pb2, usage_pb2_grpc
from tests.pki import Pki

SERVICE = "kvtier.v1.UsageService"
DAY = 86_400.0
LIMITS = CallLimits(calls_max=3, calls_per_session_max=2)


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


class Gate:
    """A server behind a gate, whose clock is `now`."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.servicer = Servicer()
        self.offset_seconds = 0.0
        table = rules(
            SERVICE,
            GetUsage=Rule(EVERY_ROLE - {Role.ENGINE}),
            GetInvoice=Rule(frozenset({Role.BILLER})),
        )
        access = Access(table, pki.security, own_tenant_only(table), limits=LIMITS)
        self.server = GrpcServer({}, access, self.now)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self.servicer, self.server.server)

    def now(self) -> float:
        return time.time() + self.offset_seconds

    def stub(self, *uris: str, days: float = 1) -> Any:
        channel = grpc.aio.secure_channel(self.address, self.pki.client(*uris, days=days))
        return usage_pb2_grpc.UsageServiceStub(channel)


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    made = Gate(Pki(tmp_path / "tls"))
    (made.address,) = await made.server.start(["127.0.0.1:0"], [SERVICE])
    yield made
    made.servicer.go.set()
    await made.server.drain(0)


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
    refused = ("TOO_MANY_CALLS", grpc.StatusCode.RESOURCE_EXHAUSTED)
    request = usage_pb2.GetInvoiceRequest()
    one, other = gate.stub(role_uri(Role.BILLER)), gate.stub(role_uri(Role.BILLER))
    held = [asyncio.ensure_future(stub.GetInvoice(request)) for stub in (one, one)]
    await until(lambda: gate.servicer.waiting == 2)
    assert await reason(one.GetUsage(usage())) == refused
    held.append(asyncio.ensure_future(other.GetInvoice(request)))
    await until(lambda: gate.servicer.waiting == 3)
    assert await reason(other.GetUsage(usage())) == refused
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


async def until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come to hold")
