"""The gRPC face: `kvtier.v1.InferenceService` for callers with an API key in the call's metadata.

    authorization: Bearer sk-kvtier-...

Requests and messages are the worker's own, but for who asks: that is the key's. A request may name
its tenant and project, and must then name the key's; the key's id and the service class are not the
caller's to say. Event loop; owns no state.
"""

from collections.abc import AsyncIterator
from typing import Any

from grpc_status import rpc_status

from gateway.body_fields import OBJECTS_MAX, STOP_TOKENS_MAX, STOPS_MAX
from gateway.completion_body import TOKENS_MAX
from gateway.errors import InvalidBodyError, WorkerError
from gateway.front import Front, put_caller
from gateway.identity import caller_of, service_class_of
from gateway.keys import ApiKey
from gateway.metrics import GatewayMetrics
from gateway.status import refusal_of, told_of
from gateway.workers import Workers
from kvtier.access import ScopeNotAllowedError
from kvtier.errors import KvtierError, status_of
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc

__all__ = ["GatewayServicer"]

PATH = "grpc"

Context = Any


class GatewayServicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(
        self, front: Front, workers: Workers, metrics: GatewayMetrics, request_seconds_max: float
    ) -> None:
        self._front = front
        self._workers = workers
        self._metrics = metrics
        self._request_seconds_max = request_seconds_max

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        outcome = "gone"
        try:
            key = self._front.key(_authorization(context))
            with self._front.admission.place(key.key_id):
                async for response in self._responses(key, request, context):
                    yield response
            outcome = "done"
        except WorkerError as error:
            outcome = self._refused(error)
            await _abort(context, error)
        except KvtierError as error:
            outcome = self._refused(error)
            raise
        finally:
            self._metrics.ended(PATH, outcome)

    async def _responses(
        self, key: ApiKey, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        _check_names(key, request)
        _check_sizes(request)
        service_class = service_class_of(key, request.service_class or None)
        put_caller(request, caller_of(key, request.user_id, "user_id"), service_class)
        seconds = self._request_seconds_max
        left = context.time_remaining()
        attempt = self._workers.generate(request, seconds if left is None else min(seconds, left))
        # A caller that goes away while nothing is sent does not wake this handler by itself.
        context.add_done_callback(lambda _: attempt.cancel())
        try:
            async for response in attempt.responses():
                yield response
        finally:
            attempt.cancel()

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Of the first worker that is up."""
        self._front.key(_authorization(context))
        models = self._workers.models()
        if not models:
            raise self._workers.none_answers()
        return next(iter(models.values()))

    def _refused(self, error: KvtierError) -> str:
        refusal = refusal_of(error)
        self._metrics.refused(refusal.reason)
        return "refused" if refusal.status < 500 else "failed"


def _authorization(context: Context) -> str:
    metadata = context.invocation_metadata() or ()
    return next((str(value) for name, value in metadata if name == "authorization"), "")


def _check_names(key: ApiKey, request: pb.GenerateRequest) -> None:
    """Raises ScopeNotAllowedError, InvalidBodyError."""
    own = (key.path.organisation, key.path.project)
    for asked, name in zip((request.tenant_id, request.project_id), own, strict=True):
        if asked not in ("", name):
            raise ScopeNotAllowedError(
                "this API key is of another tenant or project; leave tenant_id and project_id empty"
            )
    if request.key_id:
        raise InvalidBodyError("key_id is the gateway's to say; leave it empty", "key_id")


def _check_sizes(request: pb.GenerateRequest) -> None:
    """As of bodies. A message of a few bytes is some fifty in memory, for as long as it is kept.

    Raises InvalidBodyError.
    """
    for there, most, field in (
        (request.chat.messages, OBJECTS_MAX, "chat.messages"),
        (request.tokens.token_ids, TOKENS_MAX, "tokens.token_ids"),
        (request.stop, STOPS_MAX, "stop"),
        (request.stop_token_ids, STOP_TOKENS_MAX, "stop_token_ids"),
    ):
        if len(there) > most:
            raise InvalidBodyError(f"{field} has more entries than are taken here", field)


async def _abort(context: Context, error: WorkerError) -> None:
    """Ends the call as the worker ended it, or with what a caller may know of that."""
    wire = told_of(error.wire)
    said = _Said(wire.reason, wire.message, dict(wire.metadata))
    status = rpc_status.to_status(status_of(said, wire.code))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(wire.code, status.details)


class _Said(KvtierError):
    """A worker's error, word for word."""

    def __init__(self, reason: str, message: str, metadata: dict[str, str]) -> None:
        super().__init__(message, **metadata)
        self.reason = reason  # type: ignore[misc]
