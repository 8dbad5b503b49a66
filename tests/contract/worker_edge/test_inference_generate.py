"""Generate and GetModel keep what `inference.proto` promises, over real gRPC and a real engine."""

import asyncio
from pathlib import Path

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb
from worker.usage_event import UsageEnd, UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox


def ask(**fields) -> pb.GenerateRequest:
    fields.setdefault("tenant_id", "acme")
    if not {"chat", "text", "tokens"} & set(fields):
        fields["text"] = "def main():"
    fields.setdefault("max_completion_tokens", 8)
    fields.setdefault("ignore_end_of_sequence", True)
    return pb.GenerateRequest(**fields)


def chat(*turns: tuple[str, str]) -> pb.ChatPrompt:
    return pb.ChatPrompt(messages=[pb.ChatMessage(role=r, content=c) for r, c in turns])


async def collect(stub, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [response async for response in stub.Generate(request)]


def text_of(responses, sample: int = 0) -> str:
    return "".join(r.delta.text for r in responses if r.delta.sample_index == sample)


def ids_of(responses, sample: int = 0) -> list[int]:
    return [t for r in responses if r.delta.sample_index == sample for t in r.delta.token_ids]


def usage_of(responses) -> pb.GenerateUsage:
    assert responses[-1].WhichOneof("event") == "usage"
    return responses[-1].usage


async def journaled(worker, data: Path) -> dict[str, UsageEvent]:
    """All events by client_request_id, read as the next start would."""
    await worker.drain()
    journal = UsageJournal(data / "journal")
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    events = [pending.event for pending in outbox.pending(10_000)]
    journal.close()
    assert len({e.request.request_id for e in events}) == len(events)
    return {e.request.client_request_id: e for e in events}


async def test_the_stream_is_started_then_deltas_then_one_usage_that_adds_up(start, tmp_path):
    worker, stub = await start()
    responses = await collect(stub, ask(text="x" * 100, client_request_id="mine"))
    kinds = [r.WhichOneof("event") for r in responses]
    assert kinds[0] == "started"
    assert kinds[-1] == "usage"
    assert kinds.count("usage") == kinds.count("started") == kinds.count("sample_end") == 1
    started, usage = responses[0].started, usage_of(responses)
    assert started.model == "tiny"
    assert started.prompt_tokens == 100
    assert usage.request_id == started.request_id != ""
    assert usage.tokens.prompt_tokens == 100
    assert usage.tokens.hit_tokens + usage.tokens.miss_tokens == 100
    assert usage.tokens.completion_tokens == len(ids_of(responses)) == 8
    assert usage.ttft.ToSeconds() + usage.ttft.nanos > 0
    event = (await journaled(worker, tmp_path / "data"))["mine"]
    assert event.request.request_id == usage.request_id
    assert usage.end_time.ToNanoseconds() == event.end_time_ns
    assert event.end is UsageEnd.LENGTH
    assert event.tokens.prompt_tokens == 100
    assert event.tokens.completion_tokens == 8
    assert event.request.tenant_id == "acme"


async def test_a_second_asking_hits_whole_blocks_and_says_the_same(start):
    _, stub = await start()
    cold = await collect(stub, ask(text="y" * 100))
    warm = await collect(stub, ask(text="y" * 100))
    assert ids_of(warm) == ids_of(cold)
    assert usage_of(cold).tokens.hit_tokens == 0
    assert usage_of(warm).tokens.hit_tokens == usage_of(warm).tokens.hit_tokens_by_tier.gpu == 96


async def test_another_tenant_does_not_hit_what_one_tenant_computed(start):
    _, stub = await start()
    await collect(stub, ask(text="z" * 100))
    other = await collect(stub, ask(text="z" * 100, tenant_id="umbra"))
    assert usage_of(other).tokens.hit_tokens == 0


async def test_a_public_system_message_is_shared_by_tenants_and_nothing_after_it(start, tmp_path):
    public = tmp_path / "public"
    public.mkdir()
    system = "You answer from the handbook. " * 4
    (public / "handbook.txt").write_text(system)
    (public / "ignored.json").write_text("x" * 200)
    _, stub = await start(f"public_prefix_directory={public}")

    question = "what is a lease? " * 8
    first = await collect(stub, ask(chat=chat(("system", system), ("user", question))))
    assert usage_of(first).tokens.hit_tokens == 0
    second = await collect(
        stub, ask(tenant_id="umbra", chat=chat(("system", system), ("user", question)))
    )
    # The special token counts as one, then "system", a newline and the text itself.
    shared = len("<system\n") + len(system)
    assert usage_of(second).tokens.hit_tokens // 16 == shared // 16
    as_text = await collect(stub, ask(tenant_id="umbra", text="x" * 200))
    assert usage_of(as_text).tokens.hit_tokens == 0


async def test_a_private_system_message_is_not_shared(start, tmp_path):
    public = tmp_path / "public"
    public.mkdir()
    (public / "handbook.txt").write_text("You answer from the handbook. " * 4)
    _, stub = await start(f"public_prefix_directory={public}")
    prompt = chat(("system", "Our own secret instructions. " * 4), ("user", "hello"))
    await collect(stub, ask(chat=prompt))
    other = await collect(stub, ask(chat=prompt, tenant_id="umbra"))
    assert usage_of(other).tokens.hit_tokens == 0


async def test_parallel_samples_share_one_prompt_and_end_each_once(start):
    _, stub = await start()
    responses = await collect(
        stub,
        ask(sample_count=4, sampling=pb.SamplingParameters(temperature=1.0, seed=5)),
    )
    ends = [r.sample_end.sample_index for r in responses if r.WhichOneof("event") == "sample_end"]
    assert sorted(ends) == [0, 1, 2, 3]
    usage = usage_of(responses)
    assert usage.tokens.prompt_tokens == len("def main():")
    assert usage.tokens.completion_tokens == 32
    assert len({tuple(ids_of(responses, sample)) for sample in range(4)}) > 1


async def test_a_seed_repeats_the_answer(start):
    _, stub = await start()
    sampling = pb.SamplingParameters(temperature=1.0, top_p=0.9, top_k=50, seed=11)
    one = await collect(stub, ask(sampling=sampling))
    two = await collect(stub, ask(sampling=sampling))
    assert ids_of(one) == ids_of(two)


async def test_text_before_a_stop_string_is_delivered_and_only_that_is_charged(start, tmp_path):
    worker, stub = await start()
    plain = await collect(stub, ask(max_completion_tokens=40))
    whole = text_of(plain)
    stop = whole[10:13]
    cut = await collect(
        stub, ask(max_completion_tokens=40, stop=[stop, "never here"], client_request_id="cut")
    )
    at = whole.index(stop)
    assert text_of(cut) == whole[:at]
    assert [r.sample_end.finish_reason for r in cut if r.HasField("sample_end")] == [
        pb.FINISH_REASON_STOP
    ]
    delivered = ids_of(cut)
    assert delivered == ids_of(plain)[: len(delivered)]
    assert usage_of(cut).tokens.completion_tokens == len(delivered) < 40
    event = (await journaled(worker, tmp_path / "data"))["cut"]
    assert event.end is UsageEnd.STOP
    assert event.tokens.completion_tokens == len(delivered)


async def test_joined_deltas_are_the_text_of_all_tokens(start, checkpoint):
    from worker.chat import load_prompt_encoder

    _, stub = await start()
    encoder = load_prompt_encoder(checkpoint)
    for prompt in ("你好 🙂 wörld", "naïve", "a"):
        responses = await collect(stub, ask(text=prompt, max_completion_tokens=64))
        assert text_of(responses) == encoder.decode(ids_of(responses))


BAD = {
    "MODEL_UNKNOWN": (ask(model="other"), grpc.StatusCode.NOT_FOUND),
    "TENANT_UNKNOWN": (ask(tenant_id="nobody"), grpc.StatusCode.NOT_FOUND),
    "TENANT_UNKNOWN empty": (ask(tenant_id=""), grpc.StatusCode.NOT_FOUND),
    "PROMPT_EMPTY": (pb.GenerateRequest(tenant_id="acme"), grpc.StatusCode.INVALID_ARGUMENT),
    "PROMPT_EMPTY text": (ask(text=""), grpc.StatusCode.INVALID_ARGUMENT),
    "PROMPT_EMPTY tokens": (ask(tokens=pb.TokenPrompt()), grpc.StatusCode.INVALID_ARGUMENT),
    "PROMPT_TOO_LONG": (ask(text="x" * 1020), grpc.StatusCode.OUT_OF_RANGE),
    "PROMPT_TOO_LONG completion": (
        ask(max_completion_tokens=2**31 - 1),
        grpc.StatusCode.OUT_OF_RANGE,
    ),
    "PROMPT_TOO_LONG by far": (ask(text="x" * 5_000_000), grpc.StatusCode.OUT_OF_RANGE),
    "PROMPT_TOO_LONG messages": (
        ask(chat=pb.ChatPrompt(messages=[pb.ChatMessage(role="user")] * 100_000)),
        grpc.StatusCode.OUT_OF_RANGE,
    ),
    "PROMPT_TOO_LONG tokens": (
        ask(tokens=pb.TokenPrompt(token_ids=[1] * 1024)),
        grpc.StatusCode.OUT_OF_RANGE,
    ),
    "TOKEN_ID_OUT_OF_RANGE": (
        ask(tokens=pb.TokenPrompt(token_ids=[1, 258])),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "TOKEN_ID_OUT_OF_RANGE negative": (
        ask(tokens=pb.TokenPrompt(token_ids=[-1])),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "INVALID_LIMIT": (ask(max_completion_tokens=-1), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT samples": (ask(sample_count=17), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT negative samples": (ask(sample_count=-1), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT stops": (ask(stop=["x"] * 9), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT empty stop": (ask(stop=[""]), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT name": (ask(client_request_id="n" * 129), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_LIMIT priority": (ask(priority=3), grpc.StatusCode.INVALID_ARGUMENT),
    "PRIORITY_NOT_GRANTED": (ask(priority=1), grpc.StatusCode.PERMISSION_DENIED),
    "INVALID_SAMPLING": (
        ask(sampling=pb.SamplingParameters(temperature=-0.1)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "INVALID_SAMPLING nan": (
        ask(sampling=pb.SamplingParameters(temperature=float("nan"))),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "INVALID_SAMPLING top_p": (
        ask(sampling=pb.SamplingParameters(top_p=1.5)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "INVALID_SAMPLING top_k": (
        ask(sampling=pb.SamplingParameters(top_k=-1)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "INVALID_MESSAGES": (ask(chat=chat(("wizard", "hi"))), grpc.StatusCode.INVALID_ARGUMENT),
    "INVALID_MESSAGES none": (ask(chat=pb.ChatPrompt()), grpc.StatusCode.INVALID_ARGUMENT),
    "MALFORMED_REQUEST": (ask(cache_mode=99), grpc.StatusCode.INVALID_ARGUMENT),
}


async def test_bad_requests_get_their_reason_before_started_and_are_never_metered(start, tmp_path):
    worker, stub = await start()
    for name, (request, code) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub, request)
        wire = read_error(caught.value)
        assert (name, wire.reason, wire.code) == (name, name.split()[0], code)
        assert wire.message
    await collect(stub, ask(client_request_id="good"))
    assert set(await journaled(worker, tmp_path / "data")) == {"good"}


async def test_values_at_the_edge_of_what_is_allowed_are_answered(start):
    _, stub = await start()
    edges = [
        {"sampling": pb.SamplingParameters(temperature=5e-324)},
        {"sampling": pb.SamplingParameters(temperature=10.0, top_p=5e-324)},
        {"sampling": pb.SamplingParameters(temperature=1.0, top_k=2**31 - 1, seed=-(2**63))},
        {"sampling": pb.SamplingParameters(temperature=1.0, seed=2**63 - 1), "sample_count": 16},
        {"text": "\0"},
        {"client_request_id": "\U0010ffff" * 128},
        {"tokens": pb.TokenPrompt(token_ids=[0, 257])},
    ]
    for edge in edges:
        assert usage_of(await collect(stub, ask(max_completion_tokens=2, **edge))).request_id


async def test_text_that_is_not_utf8_is_a_malformed_request(start):
    worker, _ = await start()
    raw = ask(text="????").SerializeToString().replace(b"????", b"\xff\xfe\xfd\xfc")
    async with grpc.aio.insecure_channel(worker.listen) as channel:
        call = channel.unary_stream("/kvtier.v1.InferenceService/Generate")(raw)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [r async for r in call]
    assert read_error(caught.value).reason == "MALFORMED_REQUEST"


async def test_a_cancelled_request_is_metered_as_cancelled(start, tmp_path):
    worker, stub = await start()
    call = stub.Generate(ask(max_completion_tokens=900, client_request_id="gone"))
    async for response in call:
        if response.WhichOneof("event") == "delta":
            break
    call.cancel()
    # The worker goes on serving, and drains without waiting for the client that went away.
    await collect(stub, ask(client_request_id="next"))
    events = await journaled(worker, tmp_path / "data")
    gone = events["gone"]
    assert gone.end is UsageEnd.CANCELLED
    assert gone.tokens.prompt_tokens == len("def main():")
    assert 1 <= gone.tokens.completion_tokens < 900
    assert events["next"].end is UsageEnd.LENGTH


async def test_a_request_cancelled_at_once_still_has_one_event(start, tmp_path):
    worker, stub = await start()
    for _ in range(10):
        call = stub.Generate(
            ask(text="w" * 900, max_completion_tokens=100, client_request_id="early")
        )
        async for response in call:
            assert response.WhichOneof("event") == "started"
            break
        call.cancel()
    event = (await journaled(worker, tmp_path / "data"))["early"]
    assert event.end is UsageEnd.CANCELLED
    assert event.tokens.prompt_tokens <= 900
    assert event.tokens.hit_tokens + event.tokens.miss_tokens == event.tokens.prompt_tokens


async def test_a_priority_is_had_by_who_is_granted_it(start):
    _, stub = await start("tenants=acme priority=-2..2,umbra priority=-2..-1")
    for fields in ({"priority": 2}, {"priority": -2}, {"tenant_id": "umbra"}):
        usage_of(await collect(stub, ask(**fields)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, ask(tenant_id="umbra", priority=0))
    assert read_error(caught.value).reason == "PRIORITY_NOT_GRANTED"
    assert "-2 to -1" in read_error(caught.value).message


async def test_the_workers_deadline_ends_a_request_with_its_reason(start, tmp_path):
    worker, stub = await start("request_deadline_seconds=0.05")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, ask(max_completion_tokens=1000, client_request_id="slow"))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert read_error(caught.value).reason == "DEADLINE"
    event = (await journaled(worker, tmp_path / "data"))["slow"]
    assert event.end is UsageEnd.DEADLINE
    assert event.tokens.completion_tokens < 1000


async def test_a_clients_own_deadline_is_metered_as_one(start, tmp_path):
    worker, stub = await start()
    request = ask(max_completion_tokens=1000, client_request_id="late")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [r async for r in stub.Generate(request, timeout=0.15)]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await journaled(worker, tmp_path / "data"))["late"].end is UsageEnd.DEADLINE


async def test_more_requests_than_allowed_are_refused_and_the_others_served(start):
    _, stub = await start("queue.running_requests_max=1", "queue.waiting_requests_max=1")
    results = await asyncio.gather(
        *(collect(stub, ask(max_completion_tokens=200)) for _ in range(12)),
        return_exceptions=True,
    )
    refused = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert {read_error(r).reason for r in refused} == {"QUEUE_FULL"}
    assert {r.code() for r in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    served = [r for r in results if isinstance(r, list)]
    assert len(served) + len(refused) == 12
    assert served
    assert all(len(ids_of(r)) == 200 for r in served)


async def test_many_requests_at_once_get_a_name_and_an_event_each(start, tmp_path):
    worker, stub = await start()
    answers = await asyncio.gather(
        *(collect(stub, ask(text="q" * (i + 1), client_request_id=f"{i}")) for i in range(24))
    )
    names = {usage_of(a).request_id for a in answers}
    assert len(names) == 24
    events = await journaled(worker, tmp_path / "data")
    assert {e.request.request_id for e in events.values()} == names
    for i, answer in enumerate(answers):
        assert events[f"{i}"].tokens.prompt_tokens == usage_of(answer).tokens.prompt_tokens == i + 1


async def test_get_model_says_what_is_served(start):
    _, stub = await start()
    model = await stub.GetModel(pb.GetModelRequest())
    assert model.model == "tiny"
    assert model.context_tokens == 1024
    assert model.block_tokens == 16
    assert model.architecture == "Qwen3ForCausalLM"
    assert model.dtype == "float32"
    assert model.attention == "pages+numba+rows"
    assert model.page_count > 0
    assert not model.cache_connected


async def test_an_unset_limit_is_the_workers_default(start):
    _, stub = await start("default_completion_tokens=5")
    responses = await collect(stub, ask(max_completion_tokens=0))
    assert len(ids_of(responses)) == 5
    nearly_full = await collect(stub, ask(text="x" * 1022, max_completion_tokens=0))
    assert len(ids_of(nearly_full)) == 2


async def test_a_bypassing_request_reuses_and_leaves_nothing(start):
    _, stub = await start()
    for _ in range(2):
        bypass = await collect(stub, ask(text="b" * 100, cache_mode=pb.CACHE_MODE_BYPASS))
        assert usage_of(bypass).tokens.hit_tokens == 0
