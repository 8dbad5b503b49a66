"""DescribePrompt over gRPC: the names that Generate gives, and nothing else happens."""

from pathlib import Path
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


async def test_other_scopes_are_those_that_the_callers_names_may_have(
    start: Any, describing: Any, tmp_path: Path
) -> None:
    """Each is the very chain of who asks from there; a foreign one is named by nobody."""
    sealed, _ = await start(
        "cache.address=", "tenants=acme/search,umbra", f"data_directory={tmp_path / 'sealed'}"
    )
    names = {"tenant_id": "acme", "project_id": "search", "user_id": "ann"}

    async def said(stub: Any, **fields: Any) -> Any:
        request = describe_pb2.DescribePromptRequest(text=WORDS, **fields)
        return await stub.DescribePrompt(request, timeout=20)

    def scopes(answer: Any) -> dict[str, bytes]:
        for other in answer.other_scopes:
            assert sum(run.block_count for run in other.runs) * 32 == len(other.block_hashes)
        return {other.runs[-1].scope_path: other.block_hashes for other in answer.other_scopes}

    own = await said(describing, **names, cache_scope=3, other_scopes=True)
    others = scopes(own)
    assert list(others) == ["", "acme", "acme/search"]
    for level, path in ((1, "acme"), (2, "acme/search")):
        asked = await said(describing, **names, cache_scope=level)
        assert others[path] == asked.block_hashes
        assert not asked.other_scopes
    wide = await said(describing, **names, other_scopes=True)
    assert list(scopes(wide)) == ["", "acme/search", "acme/search/ann"]
    assert scopes(wide)["acme/search/ann"] == own.block_hashes
    alone = await said(describing, tenant_id="umbra", other_scopes=True)
    assert list(scopes(alone)) == [""]
    assert scopes(alone)[""] == others[""]
    assert alone.block_hashes not in others.values()

    channels: list[Any] = []
    granted = await said(describe_stub(sealed, channels), **names, cache_scope=3, other_scopes=True)
    assert list(scopes(granted)) == ["", "acme/search"], "the grant has no organisation"
    await channels[0].close()


async def test_declared_prefixes_are_named_with_and_without(start: Any, tmp_path: Path) -> None:
    declared = tmp_path / "declared"
    (declared / "acme").mkdir(parents=True)
    (declared / "acme" / "rules.txt").write_text("r" * 64)
    running, _ = await start("cache.address=", f"organisation_prefix_directory={declared}")
    channels: list[Any] = []
    stub = describe_stub(running, channels)
    chat = inference_pb2.ChatPrompt(
        messages=[
            inference_pb2.ChatMessage(role="system", content="r" * 64),
            inference_pb2.ChatMessage(role="user", content="u" * 64),
        ]
    )
    names = {"tenant_id": "acme", "project_id": "search", "cache_scope": 2}
    request = describe_pb2.DescribePromptRequest(chat=chat, other_scopes=True, **names)
    said = await stub.DescribePrompt(request, timeout=20)
    runs = [[(r.scope_path, r.block_count) for r in o.runs] for o in said.other_scopes]
    whole = len(said.block_hashes) // 32
    assert runs == [[("", whole)], [("acme", whole)], [("acme/search", whole)]]
    shared = said.other_scopes[1].block_hashes
    assert said.block_hashes[: 32 * 4] == shared[: 32 * 4]
    assert said.block_hashes[32 * 5 :] != shared[32 * 5 :]
    await channels[0].close()


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
