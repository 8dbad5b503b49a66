"""The gRPC edge of inference: convert, call, convert. No decisions.

The only place in the worker that knows inference messages. Event loop; owns no state.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from kvtier.errors import KvtierError
from kvtier.scopes import ScopeLevel
from kvtier.serving import MalformedRequestError
from kvtier.v1 import block_pb2, inference_pb2, inference_pb2_grpc
from worker.attribution import Attribution
from worker.cache_control import CacheControl
from worker.chat import ChatMessage
from worker.generation import Output, Settled, Started
from worker.request_checks import Ask, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from worker.request_desk import RequestDesk
from worker.requests import CacheMode, FinishReason
from worker.sample_text import TextDelta
from worker.sampling import Sampling
from worker.tenants import Caller
from worker.usage_wire import timestamp_message, tokens_message

__all__ = ["InferenceServicer"]

Context = Any
"""grpc.aio.ServicerContext; its stubs and its callbacks disagree about their types."""

_CACHE_MODES = {
    inference_pb2.CACHE_MODE_UNSPECIFIED: CacheMode.DEFAULT,
    inference_pb2.CACHE_MODE_READ_ONLY: CacheMode.READ_ONLY,
    inference_pb2.CACHE_MODE_BYPASS: CacheMode.BYPASS,
}

_CACHE_SCOPES = {
    inference_pb2.CACHE_SCOPE_UNSPECIFIED: None,
    inference_pb2.CACHE_SCOPE_ORGANISATION: ScopeLevel.ORGANISATION,
    inference_pb2.CACHE_SCOPE_PROJECT: ScopeLevel.PROJECT,
    inference_pb2.CACHE_SCOPE_USER: ScopeLevel.USER,
}

_FINISH_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Generate and GetModel."""

    def __init__(
        self,
        desk: RequestDesk,
        describe: Callable[[], inference_pb2.GetModelResponse],
        on_refusal: Callable[[str], None],
    ) -> None:
        """`on_refusal` is told the reason of every request that was not admitted."""
        self._desk = desk
        self._describe = describe
        self._on_refusal = on_refusal

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        try:
            generation = await self._desk.open(read_ask(request), context.time_remaining())
        except KvtierError as error:
            self._on_refusal(error.reason)
            raise
        # A cancelled call whose handler is not waiting for us never comes back here by itself.
        context.add_done_callback(lambda _: generation.abandon())
        try:
            async for output in generation.outputs():
                yield write_output(output)
        finally:
            generation.abandon()

    async def GetModel(
        self, request: inference_pb2.GetModelRequest, context: Context
    ) -> inference_pb2.GetModelResponse:
        return self._describe()


def read_ask(request: inference_pb2.GenerateRequest) -> Ask:
    """Raises MalformedRequestError for a cache mode or scope that this version does not know."""
    if request.cache_mode not in _CACHE_MODES:
        raise MalformedRequestError(f"cache_mode {request.cache_mode} is unknown here")
    if request.cache_scope not in _CACHE_SCOPES:
        raise MalformedRequestError(f"cache_scope {request.cache_scope} is unknown here")
    return Ask(
        caller=Caller(
            tenant_id=request.tenant_id,
            project_id=request.project_id,
            user_id=request.user_id,
            cache_scope=_CACHE_SCOPES[request.cache_scope],
        ),
        model=request.model,
        prompt=_read_prompt(request),
        max_completion_tokens=request.max_completion_tokens,
        sampling=_read_sampling(request),
        sample_count=request.sample_count,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        cache=_read_cache_control(request),
        client_request_id=request.client_request_id,
        ignore_end_of_sequence=request.ignore_end_of_sequence,
        priority=request.priority if request.HasField("priority") else None,
        adapter=request.adapter,
        attribution=Attribution(request.session_id, request.key_id, request.service_class),
    )


def write_output(output: Output) -> inference_pb2.GenerateResponse:
    match output:
        case Started(request_id, model, prompt_tokens):
            return inference_pb2.GenerateResponse(
                started=inference_pb2.GenerateStarted(
                    request_id=request_id, model=model, prompt_tokens=prompt_tokens
                )
            )
        case TextDelta():
            return inference_pb2.GenerateResponse(delta=_write_delta(output))
        case Settled():
            return inference_pb2.GenerateResponse(usage=_write_usage(output))
        case _:
            return inference_pb2.GenerateResponse(
                sample_end=inference_pb2.SampleEnd(
                    sample_index=output.sample_index,
                    finish_reason=_FINISH_REASONS[output.finish_reason],
                )
            )


def _read_prompt(request: inference_pb2.GenerateRequest) -> Prompt | None:
    match request.WhichOneof("prompt"):
        case "chat":
            return ChatPrompt(tuple(ChatMessage(m.role, m.content) for m in request.chat.messages))
        case "text":
            return TextPrompt(request.text)
        case "tokens":
            return TokenPrompt(tuple(request.tokens.token_ids))
        case _:
            return None


def _read_cache_control(request: inference_pb2.GenerateRequest) -> CacheControl:
    timeout = request.cache_timeout
    return CacheControl(
        mode=_CACHE_MODES[request.cache_mode],
        one_off=request.one_off,
        ttl_class=request.ttl_class,
        timeout_seconds=(
            timeout.seconds + timeout.nanos / 1e9 if request.HasField("cache_timeout") else None
        ),
    )


def _read_sampling(request: inference_pb2.GenerateRequest) -> Sampling:
    sampling = request.sampling
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1.0,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed if sampling.HasField("seed") else None,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
    )


def _write_delta(delta: TextDelta) -> inference_pb2.GenerateDelta:
    return inference_pb2.GenerateDelta(
        sample_index=delta.sample_index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[
            inference_pb2.TokenLogprob(
                token_id=told.own.token_id,
                text=told.own.text,
                logprob=told.own.logprob,
                top=[
                    inference_pb2.TopLogprob(
                        token_id=each.token_id, text=each.text, logprob=each.logprob
                    )
                    for each in told.top
                ],
            )
            for told in delta.logprobs
        ],
    )


def _write_usage(settled: Settled) -> inference_pb2.GenerateUsage:
    event, usage = settled.event, settled.usage
    return inference_pb2.GenerateUsage(
        request_id=event.request.request_id,
        tokens=tokens_message(event.tokens),
        ttft=None if event.ttft_ns is None else _duration(event.ttft_ns),
        queue_time=_duration(round(usage.queue_seconds * 1e9)),
        load_time=_duration(round(usage.load_seconds * 1e9)),
        miss_reason=block_pb2.MissReason.Name(int(usage.miss_reason)),
        end_time=timestamp_message(event.end_time_ns),
        computed=None if settled.computed is None else tokens_message(settled.computed),
    )


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration
