"""The gate over a real server: who calls is asked anew with every call, and every no is noted."""

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pytest

from kvtier.access import Access, Rule, ScopeNotAllowedError, UnauthenticatedError, own_tenant_only
from kvtier.gate import AccessInterceptor
from kvtier.principals import EVERY_ROLE, Principal, Role, grants, role_uri
from kvtier.tls import SecuritySettings
from kvtier.v1 import inference_pb2, usage_pb2, usage_pb2_grpc
from tests.gate import DAY, LIMITS, SERVICE, TOO_MANY, Gate, Notes, StartGate, reason, until, usage


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


AUDITED = {
    f"/{SERVICE}/GetUsage": Rule(frozenset({Role.BILLER, Role.TENANT}), audited=True),
    f"/{SERVICE}/GetInvoice": Rule(frozenset({Role.BILLER})),
}


async def test_whatever_refuses_an_audited_call_is_noted(start_gate: StartGate) -> None:
    gate = await start_gate(LIMITS, AUDITED)
    biller, tenant = gate.channel(role_uri(Role.BILLER)), gate.channel(role_uri(Role.TENANT, "a"))
    stub = usage_pb2_grpc.UsageServiceStub(biller)
    held = [stub.GetInvoice(usage_pb2.GetInvoiceRequest()) for _ in range(2)]
    await until(lambda: gate.servicer.waiting == 2)
    assert await reason(stub.GetUsage(usage())) == TOO_MANY
    stranger = usage_pb2_grpc.UsageServiceStub(gate.channel(role_uri(Role.OPERATOR)))
    assert (await reason(stranger.GetUsage(usage())))[0] == "ROLE_NOT_ALLOWED"
    other = usage_pb2_grpc.UsageServiceStub(tenant).GetUsage(usage("b"))
    assert (await reason(other))[0] == "SCOPE_NOT_ALLOWED"
    gate.offset_seconds = 2 * DAY
    assert (await reason(stub.GetUsage(usage())))[0] == "CERTIFICATE_EXPIRED"
    gate.servicer.go.set()
    await asyncio.gather(*held)
    assert gate.notes.lines == [
        (frozenset({role}), f"/{SERVICE}/GetUsage", "refused", word)
        for role, word in (
            (Role.BILLER, "TOO_MANY_CALLS"),
            (Role.OPERATOR, "ROLE_NOT_ALLOWED"),
            (Role.TENANT, "SCOPE_NOT_ALLOWED"),
            (Role.BILLER, "CERTIFICATE_EXPIRED"),
        )
    ]
    assert [len(key) for key in gate.notes.keys] == [64] * 3


class NobodysContext:
    """A connection in clear, which a server that is not in development does not even open."""

    def peer(self) -> str:
        return "ipv4:10.0.0.1:1"

    def auth_context(self) -> dict[str, Any]:
        return {}


async def test_an_audited_call_of_nobody_is_noted() -> None:
    notes = Notes()
    access = Access({"/m": Rule(EVERY_ROLE, audited=True)}, SecuritySettings(), audit=notes)
    guarded = AccessInterceptor(access, time.time)._unary(answers, "/m")
    with pytest.raises(UnauthenticatedError):
        await guarded(usage(), NobodysContext())
    assert notes.lines == [(frozenset(), "/m", "refused", "UNAUTHENTICATED")]


async def test_an_audited_call_that_is_let_in_is_no_refusal(
    start_gate: StartGate,
) -> None:
    gate = await start_gate(LIMITS, AUDITED)
    await gate.stub(role_uri(Role.BILLER)).GetUsage(usage())
    assert [line[2] for line in gate.notes.lines] == ["begun"]


async def answers(_request: Any, _context: Any) -> Any:
    return usage_pb2.GetUsageResponse()
