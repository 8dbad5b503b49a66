"""Roles of billing and of the worker, over mutual TLS: each method, each role."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default

import billing.roles
import worker.roles
from billing.server import start_billing
from billing.settings import BillingSettings
from kvtier.access import Access, Rule, own_tenant_only
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.principals import EVERY_ROLE, Role
from kvtier.serving import GrpcServer
from kvtier.v1 import (
    attestation_pb2,
    budget_pb2,
    describe_pb2,
    describe_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    receipt_opening_pb2,
    receipt_opening_pb2_grpc,
    receipt_pb2,
    receipt_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from tests.pki import Pki, raw_call

TABLES = {
    "kvtier.v1.UsageService": billing.roles.RULES,
    "kvtier.v1.BudgetService": billing.roles.RULES,
    "kvtier.v1.ReceiptService": billing.roles.RULES,
    "kvtier.v1.AttestationService": billing.roles.RULES,
    "kvtier.v1.InferenceService": worker.roles.RULES,
    "kvtier.v1.DescribeService": worker.roles.RULES,
    "kvtier.v1.ReceiptOpeningService": worker.roles.RULES,
}
assert attestation_pb2.DESCRIPTOR
assert budget_pb2.DESCRIPTOR
assert usage_pb2.DESCRIPTOR
assert inference_pb2.DESCRIPTOR
assert describe_pb2.DESCRIPTOR
assert receipt_pb2.DESCRIPTOR
assert receipt_opening_pb2.DESCRIPTOR
REFUSED = ("ROLE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)


def methods(service: str) -> dict[str, Any]:
    described = Default().FindServiceByName(service).methods
    return {f"/{service}/{method.name}": method for method in described}


@pytest.mark.parametrize("service", TABLES)
def test_every_call_has_a_row_and_every_row_a_call(service: str) -> None:
    table = TABLES[service]
    described = {method for each in TABLES if TABLES[each] is table for method in methods(each)}
    assert set(table) == described


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "tls")


@pytest.fixture
async def till(pki: Pki, tmp_path: Path) -> AsyncIterator[str]:
    running = await start_billing(
        BillingSettings(
            listen="127.0.0.1:0", data_directory=tmp_path / "billing", security=pki.security
        )
    )
    yield running.listen
    await running.drain()


@pytest.fixture
async def engine_edge(pki: Pki) -> AsyncIterator[str]:
    """The worker's gate; behind it every call is unimplemented."""
    table = worker.roles.RULES
    server = GrpcServer({}, Access(table, pki.security, own_tenant_only(table)))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(
        inference_pb2_grpc.InferenceServiceServicer(), server.server
    )
    describe_pb2_grpc.add_DescribeServiceServicer_to_server(
        describe_pb2_grpc.DescribeServiceServicer(), server.server
    )
    receipt_opening_pb2_grpc.add_ReceiptOpeningServiceServicer_to_server(
        receipt_opening_pb2_grpc.ReceiptOpeningServiceServicer(), server.server
    )
    (address,) = await server.start(["127.0.0.1:0"], ["kvtier.v1.InferenceService"])
    yield address
    await server.drain(0)


async def check_every_role(address: str, pki: Pki, service: str) -> None:
    for role in EVERY_ROLE:
        with grpc.secure_channel(address, pki.role(role)) as channel:
            for method, described in methods(service).items():
                said = await asyncio.to_thread(outcome, channel, method, described)
                allowed = role in TABLES[service].get(method, Rule(frozenset())).roles
                assert (said == REFUSED) == (not allowed), (method, role, said)
                if (
                    allowed
                    and role is Role.TENANT
                    and "tenant_id" in described.input_type.fields_by_name
                ):
                    assert said[0] == "SCOPE_NOT_ALLOWED", "an empty tenant_id is everybody's"


def outcome(channel: grpc.Channel, method: str, described: Any) -> tuple[str, Any]:
    try:
        raw_call(channel, method, (described.client_streaming, described.server_streaming))
    except grpc.RpcError as error:
        wire = read_error(error)
        return wire.reason, wire.code
    return "", None


async def test_a_role_reaches_its_own_calls_of_billing_and_no_other(till: str, pki: Pki) -> None:
    await check_every_role(till, pki, "kvtier.v1.ReceiptService")
    await check_every_role(till, pki, "kvtier.v1.UsageService")
    await check_every_role(till, pki, "kvtier.v1.BudgetService")


async def test_a_role_reaches_its_own_calls_of_the_worker_and_no_other(
    engine_edge: str, pki: Pki
) -> None:
    await check_every_role(engine_edge, pki, "kvtier.v1.InferenceService")
    await check_every_role(engine_edge, pki, "kvtier.v1.DescribeService")
    await check_every_role(engine_edge, pki, "kvtier.v1.ReceiptOpeningService")


async def test_an_engine_records_usage_over_tls(till: str, pki: Pki) -> None:
    async with open_aio_channel(till, pki.engine) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        answer = await stub.RecordUsage(usage_pb2.RecordUsageRequest(), timeout=10)
        assert not answer.outcomes


async def test_a_tenant_sees_its_own_usage_and_no_other(till: str, pki: Pki) -> None:
    async with open_aio_channel(till, pki.engine) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        events = [used("r1", "acme", "search"), used("r2", "acme", "ads"), used("r3", "beta", "")]
        answer = await stub.RecordUsage(usage_pb2.RecordUsageRequest(events=events))
        assert [each.status for each in answer.outcomes] == [usage_pb2.RECORD_STATUS_ACCEPTED] * 3

    async def found(uri: str, **asked: str) -> str:
        """Request ids, or the reason of the refusal."""
        async with open_aio_channel(till, pki.client(uri)) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            try:
                request = usage_pb2.FindUsageEventsRequest(**asked)
                entries = (await stub.FindUsageEvents(request, timeout=10)).entries
                query = usage_pb2.GetUsageRequest(
                    tenant_id=request.tenant_id, project_id=request.project_id
                )
                rows = (await stub.GetUsage(query, timeout=10)).rows
            except grpc.RpcError as error:
                return read_error(error).reason
            return f"{' '.join(e.event.request_id for e in entries)}: {rows[0].request_count}"

    acme, search = "kvtier://tenant/acme", "kvtier://tenant/acme/search"
    assert await found(acme, tenant_id="acme", id="mine") == "r1 r2: 2"
    assert await found(acme, tenant_id="acme", id="r3") == "EVENT_UNKNOWN"
    assert await found(acme, tenant_id="beta", id="r3") == "SCOPE_NOT_ALLOWED"
    assert await found(acme, id="r1") == "SCOPE_NOT_ALLOWED"
    assert await found(search, tenant_id="acme", project_id="search", id="mine") == "r1: 1"
    assert await found(search, tenant_id="acme", id="mine") == "SCOPE_NOT_ALLOWED"
    assert await found(search, tenant_id="acme", project_id="ads", id="r2") == "SCOPE_NOT_ALLOWED"
    assert await found("kvtier://biller", id="mine") == "r1 r2 r3: 3"
    assert await found("kvtier://engine", id="r1") == "ROLE_NOT_ALLOWED"


async def test_a_tenant_gets_its_own_receipts_and_opens_its_own_requests_alone(
    till: str, engine_edge: str, pki: Pki
) -> None:
    async with open_aio_channel(till, pki.engine) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        events = [used("r1", "acme", "search"), used("r2", "acme", "ads"), used("r3", "beta", "")]
        await stub.RecordUsage(usage_pb2.RecordUsageRequest(events=events))

    async def got(uri: str, **asked: str) -> str:
        async with open_aio_channel(till, pki.client(uri)) as channel:
            stub = receipt_pb2_grpc.ReceiptServiceStub(channel)
            try:
                request = receipt_pb2.GetReceiptRequest(**asked)
                answer = await stub.GetReceipt(request, timeout=10)
            except grpc.RpcError as error:
                return read_error(error).reason
            return str(json.loads(answer.receipt)["receipt"]["event"]["request_id"])

    acme, search = "kvtier://tenant/acme", "kvtier://tenant/acme/search"
    assert await got(acme, tenant_id="acme", id="r2") == "r2"
    assert await got(acme, tenant_id="acme", id="r3") == "EVENT_UNKNOWN"
    assert await got(acme, tenant_id="acme", id="mine") == "RECEIPT_AMBIGUOUS"
    assert await got(acme, tenant_id="beta", id="r3") == "SCOPE_NOT_ALLOWED"
    assert await got(acme, id="r1") == "SCOPE_NOT_ALLOWED"
    assert await got(search, tenant_id="acme", project_id="search", id="mine") == "r1"
    assert await got(search, tenant_id="acme", project_id="search", id="r2") == "EVENT_UNKNOWN"
    assert await got("kvtier://auditor", id="r3") == "r3"
    assert await got("kvtier://engine", id="r1") == "ROLE_NOT_ALLOWED"

    async def opens(uri: str, *names: str) -> str:
        """What the gate says: behind it here nothing answers."""
        asked = dict(zip(("tenant_id", "project_id", "user_id"), names, strict=False))
        async with open_aio_channel(engine_edge, pki.client(uri)) as channel:
            stub = receipt_opening_pb2_grpc.ReceiptOpeningServiceStub(channel)
            try:
                await stub.OpenReceipt(receipt_opening_pb2.OpenReceiptRequest(**asked), timeout=10)
            except grpc.RpcError as error:
                reason = read_error(error).reason
                return "let in" if reason == "INTERNAL" else reason
            raise AssertionError("nothing answers")

    assert await opens(acme, "acme", "search", "ann") == "let in"
    assert await opens(acme, "beta") == "SCOPE_NOT_ALLOWED"
    assert await opens(search, "acme", "search") == "let in"
    assert await opens(search, "acme") == "SCOPE_NOT_ALLOWED"
    assert await opens(search, "acme", "ads") == "SCOPE_NOT_ALLOWED"
    for uri in ("kvtier://auditor", "kvtier://biller", "kvtier://engine", "kvtier://gateway"):
        assert await opens(uri, "acme") == "ROLE_NOT_ALLOWED"


def used(name: str, tenant: str, project: str) -> usage_pb2.UsageEvent:
    event = usage_pb2.UsageEvent(
        request_id=name,
        schema_version=1,
        tenant_id=tenant,
        project_id=project,
        model="demo",
        end_reason=usage_pb2.END_REASON_STOP,
        client_request_id="mine",
    )
    event.start_time.FromSeconds(1_700_000_000)
    event.end_time.FromSeconds(1_700_000_001)
    return event


async def test_billing_on_its_unix_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    running = await start_billing(
        BillingSettings(listen="", unix_socket=path, data_directory=tmp_path / "billing")
    )
    try:
        assert running.listen == f"unix:{path}"
        async with open_aio_channel(running.listen) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            assert await stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=10)
            assert await stub.GetUsage(usage_pb2.GetUsageRequest(), timeout=10) is not None
    finally:
        await running.drain()
