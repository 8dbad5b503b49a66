"""A worker with several adapters: who asks for one gets it, and what was computed with it."""

import asyncio
from pathlib import Path

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import describe_pb2, describe_pb2_grpc, usage_pb2
from kvtier.v1 import inference_pb2 as pb
from tests.contract.worker_edge.starts import arguments, refuses
from worker.usage_journal import UsageJournal, UsageOutbox

TEXT = "once upon a time " * 8
REUSABLE = (len(TEXT) - 1) // 16 * 16


@pytest.fixture
def adapters(save_adapter) -> dict[str, Path]:
    return {
        name: save_adapter(f"files-of-{name}", seed) for seed, name in enumerate(("poet", "clerk"))
    }


def setting(adapters: dict[str, Path]) -> str:
    return "adapters=" + ",".join(f"{name}={path}" for name, path in adapters.items())


async def ask_with_usage(stub, **who: str) -> tuple[list[int], usage_pb2.TokenUsage]:
    responses = await answer(stub, **who)
    return [t for r in responses for t in r.delta.token_ids], responses[-1].usage.tokens


async def ask(stub, **who: str) -> tuple[list[int], str, int]:
    """Tokens, the model's name and hit tokens."""
    responses = await answer(stub, **who)
    tokens = [t for r in responses for t in r.delta.token_ids]
    return tokens, responses[0].started.model, responses[-1].usage.tokens.hit_tokens


async def answer(stub, **who: str) -> list[pb.GenerateResponse]:
    request = pb.GenerateRequest(
        tenant_id="acme", text=TEXT, max_completion_tokens=8, ignore_end_of_sequence=True, **who
    )
    return [response async for response in stub.Generate(request)]


async def test_each_adapter_has_its_blocks_in_every_tier_and_its_name_in_every_event(
    start_cache, start, adapters, secret, tmp_path
):
    cache = await start_cache()
    shared = (
        f"cache.address={cache.listen}",
        f"scope_secret_file={secret}",
        setting(adapters),
    )
    worker, stub = await start(*shared, f"data_directory={tmp_path / 'first'}")
    model = await stub.GetModel(pb.GetModelRequest())
    assert (model.model, list(model.adapters)) == ("tiny", ["clerk", "poet"])
    cold = {name: await ask(stub, adapter=name) for name in ("", "poet", "clerk")}
    assert len({tuple(tokens) for tokens, _, _ in cold.values()}) == 3
    assert {hits for _, _, hits in cold.values()} == {0}
    assert await ask(stub, model="tiny:poet") == (cold["poet"][0], "tiny:poet", REUSABLE)
    assert await ask(stub, model="tiny") == (cold[""][0], "tiny", REUSABLE)
    assert await ask(stub, model="tiny:poet", adapter="poet") == (
        cold["poet"][0],
        "tiny:poet",
        REUSABLE,
    )
    await worker.drain()
    journal = UsageJournal(tmp_path / "first" / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    models = sorted(pending.event.request.model for pending in outbox.pending(100))
    journal.close()
    assert models == ["tiny", "tiny", "tiny:clerk", "tiny:poet", "tiny:poet", "tiny:poet"]

    worker, stub = await start(*shared, f"data_directory={tmp_path / 'second'}")
    for name in ("clerk", "", "poet"):
        tokens, _, hits = await ask(stub, adapter=name)
        assert (tokens, hits) == (cold[name][0], REUSABLE), name
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        describe = describe_pb2_grpc.DescribeServiceStub(channel)

        async def described(**who: str) -> describe_pb2.DescribePromptResponse:
            asked = describe_pb2.DescribePromptRequest(tenant_id="acme", text=TEXT, **who)
            return await describe.DescribePrompt(asked)

        poet = await described(adapter="poet")
        assert poet == await described(model="tiny:poet")
        assert (poet.model, poet.resident_count) == ("tiny:poet", REUSABLE // 16)
        base = await described()
        assert base.namespace_id != poet.namespace_id
        assert base.block_hashes != poet.block_hashes


async def test_each_adapter_has_its_blocks_from_the_ssd_after_both_services_restarted(
    start_cache, start, adapters, secret, tmp_path
):
    on_disk = {
        "data_directory": str(tmp_path / "cache"),
        "ssd": {"enabled": True, "capacity_bytes": "64MiB", "segment_bytes": "8MiB"},
    }
    cache = await start_cache(**on_disk)
    shared = (f"scope_secret_file={secret}", setting(adapters))
    first = (f"cache.address={cache.listen}", f"data_directory={tmp_path / 'first'}")
    worker, stub = await start(*shared, *first)
    cold = {name: await ask(stub, adapter=name) for name in ("", "poet", "clerk")}
    assert len({tuple(tokens) for tokens, _, _ in cold.values()}) == 3
    await worker.drain()
    await cache.stop()

    cache = await start_cache(**on_disk)
    second = (f"cache.address={cache.listen}", f"data_directory={tmp_path / 'second'}")
    worker, stub = await start(*shared, *second)
    for name in ("clerk", "", "poet"):
        tokens, usage = await ask_with_usage(stub, adapter=name)
        assert tokens == cold[name][0], name
        assert usage.hit_tokens == usage.hit_tokens_by_tier.ssd == REUSABLE, name


@pytest.mark.parametrize(
    ("who", "reason", "problem"),
    [
        ({"adapter": "bard"}, "ADAPTER_UNKNOWN", "tiny has no adapter bard here; it has clerk"),
        ({"model": "tiny:bard"}, "ADAPTER_UNKNOWN", "tiny has no adapter bard here"),
        ({"model": "huge:poet"}, "MODEL_UNKNOWN", "this worker serves tiny"),
        ({"model": "poet"}, "MODEL_UNKNOWN", "this worker serves tiny"),
        ({"model": "tiny:clerk", "adapter": "poet"}, "MODEL_UNKNOWN", "this worker serves tiny"),
    ],
)
async def test_an_adapter_that_is_not_there_is_refused(start, adapters, who, reason, problem):
    _, stub = await start(setting(adapters))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(stub, **who)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert read_error(refused.value).reason == reason
    assert problem in read_error(refused.value).message


async def test_a_worker_without_adapters_says_so(start):
    _, stub = await start()
    assert not (await stub.GetModel(pb.GetModelRequest())).adapters
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(stub, adapter="poet")
    assert "tiny has no adapter poet here; it has none" in read_error(refused.value).message


async def test_requests_of_all_adapters_run_at_once(start, adapters):
    _, stub = await start(setting(adapters))
    names = ("", "poet", "clerk")
    alone = {name: (await ask(stub, adapter=name))[0] for name in names}
    together = await asyncio.gather(*(ask(stub, adapter=name) for name in names * 4))
    assert [tokens for tokens, _, _ in together] == [alone[name] for name in names] * 4


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            "adapter=somewhere",
            "INVALID_SETTINGS: the settings are not usable:\n  settings: adapters:",
        ),
        (
            "adapter_bytes_max=1000",
            "ADAPTER_REFUSED: with adapter clerk the adapters take 1536 bytes",
        ),
    ],
)
def test_start_that_cannot_have_the_adapters_is_refused(
    more, problem, capsys, checkpoint, adapters, tmp_path
):
    argv = arguments(checkpoint, tmp_path / "data", setting(adapters), more)
    assert problem in refuses(capsys, argv)
