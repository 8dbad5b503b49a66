"""A request that fails, ends late or is cancelled: its usage is told, and is the ledger's event."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb
from worker.model_runner import ModelRunner
from worker.usage_event import UsageEnd, UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox


def ask(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(tenant_id="acme", ignore_end_of_sequence=True, **fields)


async def failing(stub: Any, request: pb.GenerateRequest) -> tuple[list[Any], grpc.aio.AioRpcError]:
    """What came before the error, and the error."""
    call, seen = stub.Generate(request), []
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            seen.append(response)
    except grpc.aio.AioRpcError as error:
        return seen, error
    raise AssertionError("the request did not fail")


async def event_of(worker: Any, data: Path, name: str) -> UsageEvent:
    """The one event of a client's name for its request, as the next start would read it."""
    await worker.drain()
    journal = UsageJournal(data / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    events = [pending.event for pending in outbox.pending(1000)]
    journal.close()
    (event,) = [event for event in events if event.request.client_request_id == name]
    return event


async def test_a_deadline_comes_after_the_usage_that_the_ledger_has(
    start: Any, tmp_path: Path
) -> None:
    worker, stub = await start("request_deadline_seconds=0.3")
    request = ask(text="w" * 100, max_completion_tokens=900, client_request_id="slow")
    seen, error = await failing(stub, request)
    assert read_error(error).reason == "DEADLINE"
    kinds = [response.WhichOneof("event") for response in seen]
    assert (kinds[0], kinds[-1], kinds.count("usage")) == ("started", "usage", 1)
    usage = seen[-1].usage
    assert usage.tokens == usage.computed
    assert usage.tokens.prompt_tokens == 100
    delivered = sum(len(response.delta.token_ids) for response in seen)
    assert usage.tokens.completion_tokens == delivered
    assert usage.request_id == seen[0].started.request_id
    event = await event_of(worker, tmp_path / "data", "slow")
    assert event.end is UsageEnd.DEADLINE
    assert event.tokens.prompt_tokens == 100
    assert event.tokens.completion_tokens == delivered
    assert event.end_time_ns == usage.end_time.ToNanoseconds()


async def test_a_failed_engine_is_told_after_a_usage_that_charges_nothing(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, stub = await start()
    warm = ask(text="w" * 64, max_completion_tokens=1)
    assert [r async for r in stub.Generate(warm)][-1].usage.computed.miss_tokens == 64
    run = ModelRunner.run
    steps = []

    def failing_third(*args: Any) -> Any:
        steps.append(args)
        if len(steps) == 3:
            raise RuntimeError("out of memory")
        return run(*args)

    monkeypatch.setattr(ModelRunner, "run", failing_third)
    bad = ask(text="w" * 66, max_completion_tokens=9, client_request_id="bad")
    seen, error = await failing(stub, bad)
    assert read_error(error).reason == "ENGINE_FAILED"
    usage = seen[-1].usage
    assert usage.request_id == seen[0].started.request_id
    assert (usage.tokens.prompt_tokens, usage.tokens.completion_tokens) == (0, 0)
    assert usage.computed.hit_tokens == usage.computed.hit_tokens_by_tier.gpu == 64
    assert (usage.computed.miss_tokens, usage.computed.completion_tokens) == (2, 2)
    assert sum(len(response.delta.token_ids) for response in seen) == 2
    event = await event_of(worker, tmp_path / "data", "bad")
    assert (event.end, event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)


async def test_what_was_generated_behind_a_stop_string_is_computed_and_not_charged(
    start: Any,
) -> None:
    _, stub = await start()
    plain = [r async for r in stub.Generate(ask(text="def", max_completion_tokens=40))]
    text = "".join(response.delta.text for response in plain)
    request = ask(text="def", max_completion_tokens=40, stop=[text[4:6]])
    cut = [r async for r in stub.Generate(request)]
    usage = cut[-1].usage
    delivered = sum(len(response.delta.token_ids) for response in cut)
    assert usage.tokens.completion_tokens == delivered
    assert delivered <= usage.computed.completion_tokens <= 40
    assert usage.computed.prompt_tokens == usage.tokens.prompt_tokens == 3


async def test_a_cancelled_client_finds_its_event_by_its_own_name(
    start: Any, tmp_path: Path
) -> None:
    worker, stub = await start()
    request = ask(text="w" * 50, max_completion_tokens=900, client_request_id="gone")
    call = stub.Generate(request)
    async for response in call:
        if response.WhichOneof("event") == "delta":
            break
    call.cancel()
    event = await event_of(worker, tmp_path / "data", "gone")
    assert event.end is UsageEnd.CANCELLED
    assert event.tokens.prompt_tokens == 50
    assert event.tokens.completion_tokens >= 1
