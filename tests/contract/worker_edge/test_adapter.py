"""A worker with an adapter, beside one of the same base and over the same cache service."""

import json
from pathlib import Path

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb
from worker.__main__ import main
from worker.usage_journal import UsageJournal, UsageOutbox

TEXT = "once upon a time " * 8


@pytest.fixture
def adapter(save_adapter) -> Path:
    return save_adapter("poet")


async def ask(stub, model: str = "") -> tuple[list[int], pb.GenerateUsage]:
    request = pb.GenerateRequest(
        tenant_id="acme",
        text=TEXT,
        model=model,
        max_completion_tokens=8,
        ignore_end_of_sequence=True,
    )
    responses = [response async for response in stub.Generate(request)]
    return [t for r in responses for t in r.delta.token_ids], responses[-1].usage


async def test_worker_with_an_adapter_shares_a_cache_with_its_base_and_no_block(
    start_cache, start, adapter, secret, tmp_path
):
    cache = await start_cache()
    shared = (f"cache.address={cache.listen}", f"scope_secret_file={secret}")
    base, to_base = await start(*shared, f"data_directory={tmp_path / 'base'}")
    first, _ = await ask(to_base, "tiny")
    again, usage = await ask(to_base)
    assert first == again
    reusable = (len(TEXT) - 1) // 16 * 16
    assert usage.tokens.hit_tokens == reusable
    await base.drain()
    base, to_base = await start(*shared, f"data_directory={tmp_path / 'restarted'}")
    restored, usage = await ask(to_base)
    assert restored == first
    assert usage.tokens.hit_tokens == reusable  # the cache service does have the base's blocks
    await base.drain()

    worker, stub = await start(
        *shared, f"data_directory={tmp_path / 'poets'}", f"adapter={adapter}"
    )
    assert worker.model == "tiny:poet"
    cold, usage = await ask(stub, "tiny:poet")
    assert usage.tokens.hit_tokens == 0
    assert cold != first
    warm, usage = await ask(stub)
    assert usage.tokens.hit_tokens == reusable
    assert warm == cold
    assert (await stub.GetModel(pb.GetModelRequest())).model == "tiny:poet"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(stub, "tiny")
    assert read_error(refused.value).reason == "MODEL_UNKNOWN"

    await worker.drain()
    journal = UsageJournal(tmp_path / "poets" / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    models = {pending.event.request.model for pending in outbox.pending(100)}
    journal.close()
    assert models == {"tiny:poet"}


def test_start_with_an_adapter_that_cannot_be_merged_is_refused(
    capsys, checkpoint, adapter, tmp_path
):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    values = (
        f"model={checkpoint}",
        "listen=127.0.0.1:0",
        "security.development=true",
        f"data_directory={tmp_path / 'data'}",
        "threads=1",
        f"adapter={adapter}",
    )
    assert main([word for value in values for word in ("--set", value)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ADAPTER_REFUSED: the adapter asks for what is not merged: use_dora=true" in captured.err
