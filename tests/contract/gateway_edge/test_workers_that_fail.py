"""Workers that refuse, die, hang and come back; callers that go away. Each step is scripted."""

import asyncio
import contextlib
from typing import Any

import grpc
import openai
import pytest

from gateway.prefix_places import CacheViews
from gateway.router import Router
from gateway.workers import Workers
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc
from tests.contract.gateway_edge.conftest import (
    MODEL,
    Scripted,
    delta,
    end,
    refusing,
    started,
    usage,
)

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


async def good(request: pb.GenerateRequest, context: Any) -> Any:
    for response in (started(), delta("a"), delta("b"), end(), usage()):
        yield response


def dying(*before: pb.GenerateResponse) -> Any:
    """Says so much, and is then as good as killed."""

    async def script(request: pb.GenerateRequest, context: Any) -> Any:
        for response in before:
            yield response
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return script


async def stuck(request: pb.GenerateRequest, context: Any) -> Any:
    yield started()
    yield delta("a")
    await asyncio.Event().wait()


async def silent(request: pb.GenerateRequest, context: Any) -> Any:
    yield started()
    await asyncio.Event().wait()


def ask(client: openai.AsyncOpenAI, **said: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=HELLO, **said)


async def text_of(stream: Any) -> str:
    return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_request_of_which_its_worker_said_nothing_goes_to_another_worker(
    scripted: Scripted,
) -> None:
    one, other = await scripted.worker(dying()), await scripted.worker(good)
    client = await scripted.start(one, other)
    reply = await ask(client)
    assert (reply.id, reply.choices[0].message.content) == ("chatcmpl-r1", "ab")
    one.requests.clear()
    for _ in range(20):  # until the one that died is asked first again
        assert await text_of(await ask(client, stream=True)) == "ab"
        if one.requests:
            break
        await asyncio.sleep(0.2)
    assert one.requests


async def test_a_worker_that_dies_in_the_middle_is_a_clean_error_and_no_second_answer(
    scripted: Scripted,
) -> None:
    one = await scripted.worker(dying(started(), delta("a")))
    client = await scripted.start(one)
    other = await scripted.worker(good)
    stream = aiter(await ask(client, stream=True))
    assert (await anext(stream)).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError) as broken:
        await anext(stream)
    assert broken.value.code == "worker_lost"
    assert not other.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [(), (delta("x"), delta("y"))])
async def test_what_a_worker_took_is_never_asked_of_another_which_would_charge_twice(
    scripted: Scripted, before: tuple[pb.GenerateResponse, ...], stream: bool
) -> None:
    one = await scripted.worker(dying(started("lost"), *before))
    other = await scripted.worker(good)
    client = await scripted.start(one, other)
    with pytest.raises(openai.APIError) as lost:
        await text_of(await ask(client, stream=stream))
    assert lost.value.code == "worker_lost"
    assert (len(one.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_ends_its_drain_is_no_worker_that_died(
    scripted: Scripted, stream: bool
) -> None:
    """`server.stop(grace)`: it cancels what runs, and charges it; nobody can connect any more."""
    one, other = await scripted.worker(silent), await scripted.worker(good)
    client = await scripted.start(one, other)
    task = asyncio.create_task(ask(client, stream=stream))
    await until(lambda: one.requests)
    await asyncio.sleep(0.2)  # its `started` is on the way
    await one.kill()  # type: ignore[attr-defined]
    with pytest.raises(openai.APIError) as lost:
        await task
    assert lost.value.code == "worker_lost"
    assert (one.cancelled, len(other.requests)) == (1, 0)


async def test_with_every_worker_gone_the_answer_is_503_and_says_when_to_come_back(
    scripted: Scripted,
) -> None:
    one, other = await scripted.worker(dying()), await scripted.worker(dying())
    client = await scripted.start(one, other)
    with pytest.raises(openai.InternalServerError) as gone:
        await ask(client)
    assert gone.value.status_code == 503
    assert gone.value.response.headers["retry-after"] == "1"
    assert len(one.requests) == len(other.requests) == 1


async def test_a_gateway_without_workers_is_not_ready_until_one_comes(scripted: Scripted) -> None:
    worker = await scripted.worker(good)
    await worker.kill()  # type: ignore[attr-defined]
    client = await scripted.start(worker)
    assert not scripted.gateway.ready
    with pytest.raises(openai.InternalServerError) as gone:
        await ask(client)
    assert (gone.value.status_code, gone.value.code) == (503, "workers_unavailable")


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [
        ("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        ("ENGINE_FAILED", grpc.StatusCode.INTERNAL, 500),
        ("DEADLINE", grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        ("USAGE_JOURNAL_FAILED", grpc.StatusCode.INTERNAL, 500),
        ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE, 503),
    ],
)
async def test_a_worker_that_refuses_is_heard_with_its_status(
    scripted: Scripted, reason: str, code: grpc.StatusCode, status: int
) -> None:
    client = await scripted.start(await scripted.worker(refusing(reason, code)))
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as refused:
            await ask(client, stream=stream)
        assert (refused.value.status_code, refused.value.code) == (status, reason.lower())
        assert ("retry-after" in refused.value.response.headers) == (status in (429, 503))
        # A second asking finds a worker that is up again.
        await asyncio.sleep(0.1)


async def test_an_end_that_is_not_well_comes_after_usage_and_without_done(
    scripted: Scripted,
) -> None:
    late = refusing(
        "DEADLINE", grpc.StatusCode.DEADLINE_EXCEEDED, started(), delta("a"), usage(tokens=9)
    )
    client = await scripted.start(await scripted.worker(late))
    stream = aiter(await ask(client, stream=True, stream_options={"include_usage": True}))
    assert (await anext(stream)).choices[0].delta.content == "a"
    assert (await anext(stream)).usage.completion_tokens == 9
    with pytest.raises(openai.APIError) as broken:
        await anext(stream)
    assert broken.value.code == "deadline"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_goes_away_is_cancelled_at_the_worker_at_once(
    scripted: Scripted, stream: bool
) -> None:
    worker = await scripted.worker(stuck if stream else silent)
    client = await scripted.start(worker)
    if stream:
        answer = await ask(client, stream=True)
        await anext(aiter(answer))
        await answer.close()
    else:
        task = asyncio.create_task(ask(client))
        await until(lambda: worker.requests)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await until(lambda: worker.cancelled)


async def test_a_silent_stream_has_heartbeats(scripted: Scripted) -> None:
    worker = await scripted.worker(stuck)
    client = await scripted.start(worker, heartbeat_seconds=0.05)
    async with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as response:
        lines = response.iter_lines()
        seen = [await anext(lines) for _ in range(8)]
    assert seen[0].startswith("data: {")
    assert seen.count(": keep-alive") >= 2
    await until(lambda: worker.cancelled)


async def test_a_caller_that_takes_nothing_is_given_up(scripted: Scripted) -> None:
    async def flood(request: pb.GenerateRequest, context: Any) -> Any:
        yield started()
        while True:
            yield delta("x" * 10_000)

    worker = await scripted.worker(flood)
    await scripted.start(worker, stall_seconds=0.3)
    reader, writer = await asyncio.open_connection(*scripted.address, limit=1024)
    body = b'{"model":"demo","messages":[{"role":"user","content":"x"}],"stream":true}'
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
        b"content-length: %d\r\n\r\n%s" % (scripted.key.encode(), len(body), body)
    )
    await until(lambda: worker.cancelled)
    writer.close()
    del reader


async def test_a_drain_lets_requests_end_and_takes_no_new_ones(scripted: Scripted) -> None:
    go = asyncio.Event()

    async def slow(request: pb.GenerateRequest, context: Any) -> Any:
        yield started()
        yield delta("a")
        await go.wait()
        for response in (delta("b"), end(), usage()):
            yield response

    client = await scripted.start(await scripted.worker(slow), drain_seconds=20)
    stream = await ask(client, stream=True)
    await anext(aiter(stream))
    draining = asyncio.create_task(scripted.gateway.drain())
    await asyncio.sleep(0.05)
    with pytest.raises(openai.APIStatusError) as refused:
        await ask(client)
    assert (refused.value.status_code, refused.value.code) == (503, "shutting_down")
    go.set()
    assert await text_of(stream) == "b"
    await draining
    with pytest.raises(openai.APIConnectionError):
        await ask(client)


async def test_a_drain_that_takes_too_long_cuts_and_the_worker_hears_of_it(
    scripted: Scripted,
) -> None:
    worker = await scripted.worker(stuck)
    client = await scripted.start(worker, drain_seconds=0.1)
    stream = await ask(client, stream=True)
    await anext(aiter(stream))
    async with asyncio.timeout(20):
        await scripted.gateway.drain()
    assert worker.cancelled == 1
    with pytest.raises(openai.APIError) as cut:
        await text_of(stream)
    assert cut.value.code == "shutting_down"


async def test_one_key_has_so_many_requests_at_a_time_and_all_together_more(
    scripted: Scripted,
) -> None:
    worker = await scripted.worker(stuck)
    client = await scripted.start(worker, limits__requests_per_key_max=2, limits__requests_max=2)
    held = [await ask(client, stream=True) for _ in range(2)]
    with pytest.raises(openai.InternalServerError) as busy:
        await ask(client)
    assert busy.value.code == "gateway_busy"
    for each in held:
        await each.close()
    await until(lambda: worker.cancelled == 2)
    again = await ask(client, stream=True)
    await again.close()


async def test_requests_of_many_callers_go_to_the_worker_that_has_fewer(
    scripted: Scripted,
) -> None:
    workers = [await scripted.worker(stuck) for _ in range(3)]
    client = await scripted.start(*workers)
    held = [await ask(client, stream=True) for _ in range(9)]
    assert [len(worker.requests) for worker in workers] == [3, 3, 3]
    for each in held:
        await each.close()


async def test_a_request_goes_to_a_worker_that_serves_its_model(scripted: Scripted) -> None:
    one, other = await scripted.worker(good), await scripted.worker(good, "other")
    client = await scripted.start(one, other)
    for _ in range(3):
        await client.chat.completions.create(model="other", messages=HELLO)
    assert (len(one.requests), len(other.requests)) == (0, 3)
    assert sorted(model.id for model in (await client.models.list()).data) == [MODEL, "other"]
    assert other.requests[0].tenant_id == "acme"
    assert other.requests[0].service_class == "batch"


async def test_a_model_whose_worker_is_down_is_503_and_one_that_nobody_has_404(
    scripted: Scripted,
) -> None:
    one, other = await scripted.worker(good), await scripted.worker(good, "other")
    client = await scripted.start(one, other)
    await other.kill()  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as gone:
            await client.chat.completions.create(model="other", messages=HELLO)
        assert gone.value.status_code == 503
    assert gone.value.code == "workers_unavailable"
    with pytest.raises(openai.InternalServerError) as gone:
        await client.models.retrieve("other")
    assert gone.value.code == "workers_unavailable"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nobody's", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody's")


async def test_a_worker_that_a_look_finds_down_is_forgotten_as_if_a_request_had(
    scripted: Scripted,
) -> None:
    forgotten = []

    class Noting(Router):
        def lost(self, worker: str) -> None:
            super().lost(worker)
            forgotten.append(worker)

    one, other = await scripted.worker(good), await scripted.worker(good)
    addresses = [one.address, other.address]
    workers = Workers(addresses, lambda _: None, Noting(CacheViews({}, {})), lambda: None)
    try:
        await workers.poll()
        assert (workers.ready, forgotten) == (True, [])
        await one.kill()  # type: ignore[attr-defined]
        await workers.poll()
        assert forgotten == [one.address]
    finally:
        await workers.close()


def samples(response: pb.GenerateResponse, index: int) -> pb.GenerateResponse:
    kind: Any = response.WhichOneof("event")
    getattr(response, kind).sample_index = index
    return response


ODD_END = pb.GenerateResponse(sample_end=pb.SampleEnd(finish_reason=pb.FINISH_REASON_UNSPECIFIED))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        (),
        (delta("a"), end(), usage()),
        (started(),),
        (started(), delta("a")),
        (started(), delta("a"), end()),
        (started(), delta("a"), usage()),
        (started(), started(), delta("a"), end(), usage()),
        (started(), delta("a"), end(), usage(), delta("b")),
        (started(), delta("a"), end(), usage(), usage()),
        (started(), delta("a"), end(), delta("b"), usage()),
        (started(), samples(delta("a"), 1), end(), usage()),
        (started(), samples(delta("a"), -1), end(), usage()),
        (started(), samples(end(), -1), usage()),
        (started(), ODD_END, usage()),
        (started(""), delta("a"), end(), usage()),
        (started("x\r\nset-cookie: y"), delta("a"), end(), usage()),
        (started("é"), delta("a"), end(), usage()),
        (started("x" * 5000), delta("a"), end(), usage()),
    ],
)
async def test_a_worker_that_talks_nonsense_is_never_told_as_a_good_answer(
    scripted: Scripted,
    said: tuple[pb.GenerateResponse, ...],
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def odd(request: pb.GenerateRequest, context: Any) -> Any:
        for response in said:
            yield response

    client = await scripted.start(await scripted.worker(odd))
    with pytest.raises(openai.APIError) as failed:
        await text_of(await ask(client, stream=stream))
    assert failed.value.code == "internal"
    assert "a worker failed" in caplog.text
    assert "Traceback" not in caplog.text
    stub = inference_pb2_grpc.InferenceServiceStub
    async with open_aio_channel(scripted.gateway.grpc_listen) as channel:
        call = stub(channel).Generate(
            pb.GenerateRequest(text="x"),
            metadata=(("authorization", f"Bearer {scripted.key}"),),
            timeout=30,
        )
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in call:
                pass
    assert read_error(broken.value).reason == "INTERNAL"


async def test_a_worker_that_is_full_leaves_the_request_to_another(scripted: Scripted) -> None:
    full = await scripted.worker(refusing("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED))
    other = await scripted.worker(good)
    client = await scripted.start(full, other)
    for _ in range(4):
        assert (await ask(client)).choices[0].message.content == "ab"
    assert full.requests
    assert len(other.requests) == 4
