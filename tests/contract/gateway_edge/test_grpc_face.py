"""The gRPC face: the worker's own contract, for who shows an API key."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway import grpc_server
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc
from tests.contract.gateway_edge.conftest import (
    MODEL,
    Scripted,
    Stack,
    delta,
    end,
    refusing,
    started,
    usage,
)


def shown(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
def stub(stack: Stack) -> Iterator[Any]:
    with grpc.insecure_channel(stack.gateway.ready["grpc_listen"]) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def ask(**said: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="say something", max_completion_tokens=3, **said)


def test_a_request_passes_and_its_event_has_the_keys_names(stack: Stack, stub: Any) -> None:
    key, text = stack.key_and_text("acme", "search", "batch")
    replies = list(stub.Generate(ask(session_id="talk"), metadata=shown(text)))
    kinds = [reply.WhichOneof("event") for reply in replies]
    assert kinds[0] == "started"
    assert kinds[-1] == "usage"
    assert "sample_end" in kinds
    event = stack.event_of(f"x-{replies[-1].usage.request_id}")
    assert event.tokens == replies[-1].usage.tokens
    assert (event.tenant_id, event.project_id, event.user_id) == ("acme", "search", "")
    assert (event.key_id, event.session_id, event.service_class) == (key.key_id, "talk", "batch")
    assert stub.GetModel(pb.GetModelRequest(), metadata=shown(text)).model == MODEL


def refusal(stub: Any, request: pb.GenerateRequest, metadata: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Generate(request, metadata=metadata, timeout=30))
    wire = read_error(refused.value)
    return wire.code, wire.reason


def test_who_has_no_key_gets_nothing(stub: Any) -> None:
    code = grpc.StatusCode.UNAUTHENTICATED
    assert refusal(stub, ask(), ()) == (code, "API_KEY_MISSING")
    assert refusal(stub, ask(), shown("x")) == (code, "INVALID_API_KEY")
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetModel(pb.GetModelRequest(), metadata=shown("x"))
    assert read_error(refused.value).reason == "INVALID_API_KEY"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"tenant_id": "umbra"}, "SCOPE_NOT_ALLOWED"),
        ({"tenant_id": "acme", "project_id": "ads"}, "SCOPE_NOT_ALLOWED"),
        ({"key_id": "other"}, "INVALID_BODY"),
        ({"service_class": "gold"}, "SERVICE_CLASS_NOT_GRANTED"),
        ({"user_id": "x" * 129}, "INVALID_BODY"),
    ],
)
def test_who_asks_is_the_keys_to_say(
    stack: Stack, stub: Any, said: dict[str, str], reason: str
) -> None:
    assert refusal(stub, ask(**said), shown(stack.key()))[1] == reason


@pytest.mark.parametrize("scope", [pb.CACHE_SCOPE_ORGANISATION, pb.CACHE_SCOPE_PROJECT])
def test_a_key_of_one_user_never_shares_blocks_with_others(
    stack: Stack, stub: Any, scope: "pb.CacheScope.ValueType"
) -> None:
    key = stack.key_of_user("ann")
    wide = (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_TOO_WIDE")
    assert refusal(stub, ask(cache_scope=scope), shown(key)) == wide
    assert refusal(stub, ask(cache_scope=scope, user_id="ann"), shown(key)) == wide
    own = ask(cache_scope=pb.CACHE_SCOPE_USER)
    assert list(stub.Generate(own, metadata=shown(key)))[-1].HasField("usage")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"model": "gpt"}, "MODEL_UNKNOWN"),
        ({"sample_count": 99}, "INVALID_LIMIT"),
        ({"priority": 2}, "PRIORITY_NOT_GRANTED"),
    ],
)
def test_a_workers_refusal_is_heard_word_for_word(
    stack: Stack, stub: Any, said: dict[str, Any], reason: str
) -> None:
    key = shown(stack.key())
    with grpc.insecure_channel(stack.worker) as channel:
        direct = inference_pb2_grpc.InferenceServiceStub(channel)
        own = refusal(direct, ask(tenant_id="acme", **said), ())
    assert refusal(stub, ask(**said), key) == own == (own[0], reason)


def test_health_needs_no_key(stack: Stack) -> None:
    with grpc.insecure_channel(stack.gateway.ready["grpc_listen"]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def opened(call: Any, *requests: Any) -> Any:
    """A stream that answered once; None: it was refused for being one too many."""
    try:
        for request in requests:
            await call.write(request)
        async with asyncio.timeout(20):
            await call.read()
    except grpc.aio.AioRpcError as error:
        reason = read_error(error).reason
        if reason != "TOO_MANY_CALLS":
            raise
        return None
    return call


@pytest.mark.parametrize("kind", ["health", "reflection"])
async def test_streams_that_need_no_key_have_an_end_to_their_number(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(grpc_server, "WATCHES_MAX", 2)
    monkeypatch.setattr(grpc_server, "REFLECTIONS_MAX", 2)
    await scripted.start(await scripted.worker(stuck))
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:

        async def another() -> Any:
            if kind == "health":
                return await opened(
                    health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                )
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            return await opened(stub.ServerReflectionInfo(), asked)

        held = [await another() for _ in range(2)]
        assert all(held)
        assert await another() is None
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert (await check).status == health_pb2.HealthCheckResponse.SERVING
        held[0].cancel()
        async with asyncio.timeout(20):
            while not await another():
                await asyncio.sleep(0.01)


async def stuck(request: Any, context: Any) -> Any:
    yield started()
    yield delta("a")
    await asyncio.Event().wait()


async def test_a_caller_that_goes_away_is_cancelled_at_the_worker(scripted: Scripted) -> None:
    worker = await scripted.worker(stuck)
    await scripted.start(worker)
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(ask(), metadata=shown(scripted.key))
        await call.read()
        await call.read()
        call.cancel()
    async with asyncio.timeout(20):
        while not worker.cancelled:
            await asyncio.sleep(0.01)


async def test_a_worker_that_dies_before_a_word_is_replaced_and_after_one_is_not(
    scripted: Scripted,
) -> None:
    async def good(request: Any, context: Any) -> Any:
        for response in (started(), delta("a"), end(), usage()):
            yield response

    async def dying(request: Any, context: Any) -> Any:
        if request.session_id:
            yield started("lost")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    one, other = await scripted.worker(dying), await scripted.worker(good)
    await scripted.start(one, other)
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        replies = [r async for r in stub.Generate(ask(), metadata=shown(scripted.key))]
        assert [r.WhichOneof("event") for r in replies] == [
            "started", "delta", "sample_end", "usage",
        ]  # fmt: skip
        assert replies[0].started.request_id == "r1"
        await scripted_again(one)
        with pytest.raises(grpc.RpcError) as broken:
            async for _ in stub.Generate(ask(session_id="x"), metadata=shown(scripted.key)):
                pass
        assert read_error(broken.value).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"chat": pb.ChatPrompt(messages=[pb.ChatMessage()] * 16_385)}, "chat.messages"),
        ({"tokens": pb.TokenPrompt(token_ids=[1] * 1_048_577)}, "tokens.token_ids"),
        ({"text": "x", "stop": ["x"] * 65}, "stop"),
        ({"text": "x", "stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ],
)
async def test_a_request_of_more_objects_than_http_takes_is_not_kept_for_a_worker(
    scripted: Scripted, said: dict[str, Any], field: str
) -> None:
    worker = await scripted.worker(stuck)
    await scripted.start(worker)
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Generate(
                pb.GenerateRequest(**said), metadata=shown(scripted.key), timeout=10
            ):
                pass
    wire = read_error(refused.value)
    assert (wire.reason, wire.metadata["field"]) == ("INVALID_BODY", field)
    assert not worker.requests


INNER = "connect to ipv4:10.9.8.7:7421 as gateway"


def failing(code: grpc.StatusCode) -> Any:
    async def script(request: Any, context: Any) -> Any:
        yield started()
        await context.abort(code, INNER)

    return script


def not_letting_in(reason: str, code: grpc.StatusCode) -> Any:
    return refusing(reason, code, message=INNER, roles=INNER, method=INNER)


Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        (failing(Code.UNAVAILABLE), Code.UNAVAILABLE, "WORKER_LOST"),
        (failing(Code.CANCELLED), Code.UNAVAILABLE, "WORKER_LOST"),
        (failing(Code.DEADLINE_EXCEEDED), Code.DEADLINE_EXCEEDED, "DEADLINE"),
        (failing(Code.UNKNOWN), Code.INTERNAL, "INTERNAL"),
        (failing(Code.DATA_LOSS), Code.INTERNAL, "INTERNAL"),
        (not_letting_in("ROLE_NOT_ALLOWED", Code.PERMISSION_DENIED), Code.INTERNAL, "INTERNAL"),
        (not_letting_in("UNAUTHENTICATED", Code.UNAUTHENTICATED), Code.INTERNAL, "INTERNAL"),
        (not_letting_in("NEW_REASON", Code.INVALID_ARGUMENT), Code.INTERNAL, "INTERNAL"),
    ],
)
async def test_what_went_wrong_between_gateway_and_worker_is_for_the_log_alone(
    scripted: Scripted,
    caplog: pytest.LogCaptureFixture,
    script: Any,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    await scripted.start(await scripted.worker(script))
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in stub.Generate(ask(), metadata=shown(scripted.key), timeout=30):
                pass
    told = read_error(broken.value)
    assert (told.code, told.reason) == (code, reason)
    assert "ipv4" not in repr(broken.value) + repr(told)
    assert "ipv4" not in repr(broken.value.trailing_metadata())
    if reason != "DEADLINE":
        assert INNER in [getattr(record, "said", "") for record in caplog.records]


async def scripted_again(worker: Any) -> None:
    """Until the gateway has seen that it is up again."""
    await asyncio.sleep(0.3)
    worker.requests.clear()
