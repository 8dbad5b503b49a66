"""One inference call from the command line's side: send, collect, time. One thread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from kvtier.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["Reply", "ask", "attempt"]

CALL_SECONDS_MAX = 170.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back of one request. `texts`, `token_ids`, `logprobs` and `finish_reasons`: one a
    sample."""

    model: str
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[inference_pb2.TokenLogprob, ...], ...]
    """One a token, where the request asked."""
    finish_reasons: tuple[str, ...]
    """"stop", "length", or "" when the stream did not say."""
    usage: inference_pb2.GenerateUsage
    """Without a `request_id`: the stream ended before it."""
    seen_ttft_seconds: float
    """From sending to the first delta, as the client saw it."""

    @property
    def ttft_seconds(self) -> float:
        return self.usage.ttft.ToTimedelta().total_seconds()


def ask(
    channel: grpc.Channel,
    request: inference_pb2.GenerateRequest,
    on_text: Callable[[int, str], None] | None = None,
) -> Reply:
    """Sends `request` and reads the stream to its end; leaving early cancels the request.

    Raises grpc.RpcError.
    """
    reply, error = attempt(channel, request, on_text)
    if error is not None:
        raise error
    return reply


def attempt(
    channel: grpc.Channel,
    request: inference_pb2.GenerateRequest,
    on_text: Callable[[int, str], None] | None = None,
) -> tuple[Reply, grpc.RpcError | None]:
    """As `ask`, but says what came before an error: a failed request tells its usage too."""
    samples = max(1, request.sample_count)
    texts: Sequence[list[str]] = [[] for _ in range(samples)]
    tokens: Sequence[list[int]] = [[] for _ in range(samples)]
    told: Sequence[list[inference_pb2.TokenLogprob]] = [[] for _ in range(samples)]
    failure: grpc.RpcError | None = None
    ends = [""] * samples
    usage = inference_pb2.GenerateUsage()
    sent = time.monotonic()
    first = 0.0
    model = ""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.Generate(request, timeout=CALL_SECONDS_MAX)
    try:
        for response in call:
            kind = response.WhichOneof("event")
            if kind == "started":
                model = response.started.model
            elif kind == "delta":
                first = first or time.monotonic()
                delta = response.delta
                texts[delta.sample_index].append(delta.text)
                tokens[delta.sample_index].extend(delta.token_ids)
                told[delta.sample_index].extend(delta.logprobs)
                if on_text is not None:
                    on_text(delta.sample_index, delta.text)
            elif kind == "sample_end":
                end = response.sample_end
                name = inference_pb2.FinishReason.Name(end.finish_reason)
                ends[end.sample_index] = name.removeprefix("FINISH_REASON_").lower()
            elif kind == "usage":
                usage = response.usage
    except grpc.RpcError as error:
        failure = error
    finally:
        call.cancel()
    reply = Reply(
        model,
        tuple("".join(parts) for parts in texts),
        tuple(tuple(ids) for ids in tokens),
        tuple(tuple(each) for each in told),
        tuple(ends),
        usage,
        max(0.0, first - sent),
    )
    return reply, failure
