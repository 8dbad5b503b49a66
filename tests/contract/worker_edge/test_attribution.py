"""What a gateway says of a request is in its usage event; nobody else says what decides a price."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from billing.server import start_billing
from billing.settings import BillingSettings
from kvtier.access import RoleNotAllowedError, ScopeNotAllowedError
from kvtier.errors import read_error
from kvtier.principals import EVERY_ROLE, Principal, Role
from kvtier.tls import SecuritySettings
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from worker.attribution import FRONTS, request_check
from worker.roles import RULES

GENERATE = "/kvtier.v1.InferenceService/Generate"
SAID: dict[str, Any] = {"session_id": "chat 7", "key_id": "k1", "service_class": "batch"}


def ask(**said: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        tenant_id="acme", text="one two three", max_completion_tokens=1, **said
    )


async def test_the_ledger_has_key_session_and_class_of_a_request(start, tmp_path: Path) -> None:
    billing = await start_billing(
        BillingSettings(
            listen="127.0.0.1:0",
            data_directory=tmp_path / "billing",
            security=SecuritySettings(development=True),
        )
    )
    try:
        _, stub = await start(f"billing.address={billing.listen}")
        ids = []
        for said in (SAID, {}):
            replies = [reply async for reply in stub.Generate(ask(**said))]
            ids.append(replies[-1].usage.request_id)
        async with grpc.aio.insecure_channel(billing.listen) as channel:
            usage = usage_pb2_grpc.UsageServiceStub(channel)
            told, silent = [await found(usage, name) for name in ids]
    finally:
        await billing.drain()
    assert (told.session_id, told.key_id, told.service_class) == ("chat 7", "k1", "batch")
    assert (silent.session_id, silent.key_id) == ("", "")
    # Known, and nobody in particular; but no class was asked for.
    assert silent.HasField("key_id")
    assert not silent.HasField("service_class")


async def found(usage: Any, name: str) -> usage_pb2.UsageEvent:
    """Once billing has it."""
    async with asyncio.timeout(30):
        while True:
            try:
                query = usage_pb2.FindUsageEventsRequest(id=name)
                return (await usage.FindUsageEvents(query)).entries[0].event
            except grpc.RpcError as error:
                if read_error(error).reason != "EVENT_UNKNOWN":
                    raise
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("field", sorted(SAID))
@pytest.mark.parametrize("text", ["x" * 129, "a\nb", "\u200b"])
async def test_what_billing_could_not_take_is_refused_before_it_costs(
    start, field: str, text: str
) -> None:
    _, stub = await start()
    with pytest.raises(grpc.RpcError) as refused:
        await stub.Generate(ask(**{field: text})).read()
    error = read_error(refused.value)
    assert (error.reason, error.metadata["field"]) == ("INVALID_LIMIT", field)


@pytest.mark.parametrize("role", sorted(EVERY_ROLE))
@pytest.mark.parametrize("field", ["key_id", "service_class"])
def test_only_a_front_says_what_decides_a_price(role: Role, field: str) -> None:
    principal = Principal("k", frozenset({role}), frozenset({("acme",)}))
    if role in FRONTS:
        request_check()(principal, GENERATE, ask(**{field: "x"}))
        return
    with pytest.raises(RoleNotAllowedError):
        request_check()(principal, GENERATE, ask(**{field: "x"}))
    request_check()(principal, GENERATE, ask(session_id="mine"))


def test_a_tenant_stays_within_its_path_as_before() -> None:
    principal = Principal("k", frozenset({Role.TENANT}), frozenset({("umbra",)}))
    with pytest.raises(ScopeNotAllowedError):
        request_check()(principal, GENERATE, ask())
    gateway = Principal("k", frozenset({Role.GATEWAY}))
    request_check()(gateway, GENERATE, ask())
    assert RULES[GENERATE].roles == {Role.TENANT, Role.GATEWAY, Role.OPERATOR}
