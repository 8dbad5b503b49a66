"""DescribePrompt over gRPC: the names that Generate gives, and nothing else happens."""

from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.keys import unpack_hashes
from kvtier.v1 import describe_pb2, describe_pb2_grpc, inference_pb2

WORDS = "a prompt that fills some blocks of sixteen tokens, and a rest that fills none"


@pytest.fixture
async def worker(start: Any) -> Any:
    return await start("cache.address=")


def describe_stub(running: Any, channels: list[Any]) -> Any:
    channels.append(grpc.aio.insecure_channel(running.listen))
    return describe_pb2_grpc.DescribeServiceStub(channels[-1])


@pytest.fixture
async def describing(worker: Any) -> Any:
    channels: list[Any] = []
    yield describe_stub(worker[0], channels)
    for channel in channels:
        await channel.close()


async def test_a_prompt_is_named_as_generate_names_it(worker: Any, describing: Any) -> None:
    ask = describe_pb2.DescribePromptRequest(tenant_id="acme", text=WORDS)
    cold = await describing.DescribePrompt(ask, timeout=20)
    assert cold.prompt_tokens == len(WORDS.encode())
    assert cold.block_tokens == 16
    chain = unpack_hashes(cold.block_hashes)
    assert len(chain) == (cold.prompt_tokens - 1) // 16
    assert cold.resident_count == 0
    request = inference_pb2.GenerateRequest(tenant_id="acme", text=WORDS, max_completion_tokens=1)
    async for _ in worker[1].Generate(request, timeout=60):
        pass
    warm = await describing.DescribePrompt(ask, timeout=20)
    assert warm.block_hashes == cold.block_hashes
    assert warm.resident_count == len(chain)


async def test_another_tenant_and_a_longer_prompt_have_other_names(describing: Any) -> None:
    async def chain(**fields: Any) -> list[bytes]:
        request = describe_pb2.DescribePromptRequest(**fields)
        answer = await describing.DescribePrompt(request, timeout=20)
        return list(unpack_hashes(answer.block_hashes))

    own = await chain(tenant_id="acme", text=WORDS)
    assert not set(own) & set(await chain(tenant_id="umbra", text=WORDS))
    assert (await chain(tenant_id="acme", text=WORDS + WORDS))[: len(own)] == own
    assert await chain(tenant_id="acme", text="short") == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "x"}, "TENANT_UNKNOWN"),
        ({"tenant_id": "nobody", "text": "x"}, "TENANT_UNKNOWN"),
        ({"tenant_id": "acme"}, "PROMPT_EMPTY"),
        ({"tenant_id": "acme", "text": "x", "model": "other"}, "MODEL_UNKNOWN"),
        ({"tenant_id": "acme", "text": "x" * 5000}, "PROMPT_TOO_LONG"),
        ({"tenant_id": "acme", "text": "x", "cache_scope": 9}, "MALFORMED_REQUEST"),
        ({"tenant_id": "acme", "text": "x", "cache_scope": 2}, "INVALID_SCOPE"),
    ],
)
async def test_what_generate_would_refuse_is_refused(
    describing: Any, fields: Any, reason: str
) -> None:
    request = describe_pb2.DescribePromptRequest(**fields)
    with pytest.raises(grpc.RpcError) as raised:
        await describing.DescribePrompt(request, timeout=20)
    assert read_error(raised.value).reason == reason


async def test_an_engine_that_never_answers_is_not_waited_for_without_end(
    describing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.Engine.count_resident", lambda *_: None)
    monkeypatch.setattr("worker.describe.RESIDENT_SECONDS_MAX", 0.1)
    request = describe_pb2.DescribePromptRequest(tenant_id="acme", text=WORDS)
    with pytest.raises(grpc.RpcError) as raised:
        await describing.DescribePrompt(request, timeout=20)
    error = read_error(raised.value)
    assert (error.reason, error.code) == ("DEADLINE", grpc.StatusCode.DEADLINE_EXCEEDED)
