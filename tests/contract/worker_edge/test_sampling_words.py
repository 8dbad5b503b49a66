"""The words on sampling in `inference.proto` do what it says, over real gRPC and a real engine."""

from math import inf, isfinite, nan
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb

Words = pb.SamplingParameters
VOCABULARY = 258


def ask(**fields: Any) -> pb.GenerateRequest:
    plain = {"text": "def main():", "max_completion_tokens": 24, "ignore_end_of_sequence": True}
    return pb.GenerateRequest(tenant_id="acme", **(plain | fields))


async def collect(stub: Any, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [response async for response in stub.Generate(request)]


def deltas_of(responses: list[pb.GenerateResponse], sample: int = 0) -> list[pb.GenerateDelta]:
    found = [r.delta for r in responses if r.WhichOneof("event") == "delta"]
    return [delta for delta in found if delta.sample_index == sample]


def ids_of(responses: list[pb.GenerateResponse], sample: int = 0) -> list[int]:
    return [token for delta in deltas_of(responses, sample) for token in delta.token_ids]


async def test_every_token_comes_with_its_logprob_and_the_likeliest_where_asked(start: Any) -> None:
    _, stub = await start()
    plain = await collect(stub, ask(text="naïve 你好"))
    told = await collect(stub, ask(text="naïve 你好", logprobs=3))
    assert ids_of(told) == ids_of(plain)
    assert not any(delta.logprobs for delta in deltas_of(plain))
    for delta in deltas_of(told):
        assert [each.token_id for each in delta.logprobs] == list(delta.token_ids)
        for each in delta.logprobs:
            assert isfinite(each.logprob)
            assert len(each.top) == 3
            # Greedy: the likeliest is the token itself.
            assert (each.top[0].token_id, each.top[0].text) == (each.token_id, each.text)
            values = [top.logprob for top in each.top]
            assert values == sorted(values, reverse=True)
    alone = await collect(stub, ask(text="naïve 你好", logprobs=0))
    assert [e.logprob for d in deltas_of(alone) for e in d.logprobs] == pytest.approx(
        [e.logprob for d in deltas_of(told) for e in d.logprobs], abs=1e-4
    )
    assert not any(each.top for delta in deltas_of(alone) for each in delta.logprobs)


async def test_a_reply_asked_for_most_logprobs_is_whole_for_each_sample(start: Any) -> None:
    _, stub = await start()
    responses = await collect(
        stub,
        ask(logprobs=20, sample_count=3, sampling=Words(temperature=1.5, seed=3), stop=["zz"]),
    )
    for sample in range(3):
        told = [each for delta in deltas_of(responses, sample) for each in delta.logprobs]
        assert [each.token_id for each in told] == ids_of(responses, sample)
        assert all(len(each.top) == 20 for each in told)
    assert responses[-1].WhichOneof("event") == "usage"


async def test_a_stop_token_ends_its_sample_and_is_neither_delivered_nor_charged(
    start: Any,
) -> None:
    _, stub = await start()
    whole = ids_of(await collect(stub, ask()))
    stop = whole[9]
    cut = await collect(stub, ask(stop_token_ids=[stop, 5, stop]))
    assert ids_of(cut) == whole[: whole.index(stop)]
    assert [r.sample_end.finish_reason for r in cut if r.HasField("sample_end")] == [
        pb.FINISH_REASON_STOP
    ]
    usage = cut[-1].usage
    assert usage.tokens.completion_tokens == usage.computed.completion_tokens == whole.index(stop)


async def test_penalties_and_filters_change_answers_as_they_say(start: Any) -> None:
    _, stub = await start()
    greedy = ids_of(await collect(stub, ask()))
    least = await collect(stub, ask(sampling=Words(temperature=2.0, min_p=1.0, seed=1)))
    assert ids_of(least) == greedy
    unlike = ids_of(await collect(stub, ask(sampling=Words(frequency_penalty=2.0))))
    assert len(set(unlike)) > len(set(greedy))
    every = Words(
        temperature=1.0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=4,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
    )
    one, two = [ids_of(await collect(stub, ask(sampling=every))) for _ in range(2)]
    assert one == two


REFUSED = [
    ({"sampling": Words(temperature=10.1)}, "INVALID_SAMPLING", "sampling.temperature", None),
    ({"sampling": Words(temperature=inf)}, "INVALID_SAMPLING", "sampling.temperature", None),
    ({"sampling": Words(top_p=-0.1)}, "INVALID_SAMPLING", "sampling.top_p", None),
    ({"sampling": Words(top_k=-1)}, "INVALID_SAMPLING", "sampling.top_k", None),
    ({"sampling": Words(min_p=1.1)}, "INVALID_SAMPLING", "sampling.min_p", None),
    ({"sampling": Words(min_p=nan)}, "INVALID_SAMPLING", "sampling.min_p", None),
    (
        {"sampling": Words(presence_penalty=2.1)},
        "INVALID_SAMPLING",
        "sampling.presence_penalty",
        None,
    ),
    (
        {"sampling": Words(frequency_penalty=-inf)},
        "INVALID_SAMPLING",
        "sampling.frequency_penalty",
        None,
    ),
    ({"logprobs": 21}, "INVALID_SAMPLING", "logprobs", None),
    ({"logprobs": -1}, "INVALID_SAMPLING", "logprobs", None),
    ({"sampling": Words(min_p=0.1)}, "INVALID_SAMPLING", "sampling.min_p", "sampling.temperature"),
    ({"sample_count": 2}, "INVALID_SAMPLING", "sample_count", "sampling.temperature"),
    ({"sample_count": 17}, "INVALID_LIMIT", "sample_count", None),
    ({"max_completion_tokens": -1}, "INVALID_LIMIT", "max_completion_tokens", None),
    ({"stop": [""]}, "INVALID_LIMIT", "stop", None),
    ({"stop": ["x"] * 9}, "INVALID_LIMIT", "stop", None),
    ({"stop_token_ids": [1] * 65}, "INVALID_LIMIT", "stop_token_ids", None),
    ({"stop_token_ids": [1, VOCABULARY]}, "TOKEN_ID_OUT_OF_RANGE", "stop_token_ids", None),
    ({"stop_token_ids": [-1]}, "TOKEN_ID_OUT_OF_RANGE", "stop_token_ids", None),
    ({"client_request_id": "n" * 129}, "INVALID_LIMIT", "client_request_id", None),
]


async def test_a_refusal_names_the_field_and_what_it_does_not_go_with(start: Any) -> None:
    _, stub = await start()
    for words, reason, field, other in REFUSED:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub, ask(**words))
        wire = read_error(caught.value)
        told = (wire.reason, wire.metadata.get("field"), wire.metadata.get("conflicts_with"))
        assert (words, told) == (words, (reason, field, other))
        assert wire.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_words_at_the_edge_of_what_is_allowed_are_answered(start: Any) -> None:
    _, stub = await start()
    edges: list[dict[str, Any]] = [
        {"sampling": Words(temperature=5e-324, min_p=5e-324)},
        {"sampling": Words(temperature=10.0, min_p=1.0, presence_penalty=-2.0)},
        {"sampling": Words(presence_penalty=2.0, frequency_penalty=2.0), "logprobs": 0},
        {"sampling": Words(temperature=1.0), "sample_count": 16, "logprobs": 20},
        {"stop_token_ids": list(range(64))},
        # Accepted from the first version on, and without effect on a greedy answer.
        {"sampling": Words(top_p=0.9, top_k=5, seed=1)},
    ]
    for edge in edges:
        responses = await collect(stub, ask(max_completion_tokens=3, **edge))
        assert responses[-1].usage.request_id
