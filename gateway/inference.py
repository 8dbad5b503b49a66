"""Answers `/chat/completions` and `/completions`.

    key -> place -> body -> GenerateRequest -> a worker -> chunks, or the whole
                                                 ^ the caller goes away: cancelled at once

Invariant: an error before the answer's first byte has its status; one after it is the stream's last
event, and then there is no `[DONE]`. Nothing is sent before the worker's first token, so that an
error until then has a status. ASGI, event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gateway.body_fields import Body
from gateway.body_reader import BodyReader
from gateway.chat_body import ChatBody, chat_request, read_chat
from gateway.completion_body import CompletionBody, completion_request, read_completion
from gateway.errors import GatewayError
from gateway.exchange import Exchange, ExchangeLimits, Gone
from gateway.front import Front, put_caller
from gateway.identity import caller_of, service_class_of
from gateway.keys import ApiKey
from gateway.metrics import GatewayMetrics
from gateway.replies import ChatReply, CompletionReply, Reply
from gateway.status import Refusal, refusal_of
from gateway.workers import Attempt, Workers
from kvtier.errors import KvtierError
from kvtier.v1 import inference_pb2 as pb

__all__ = ["CHAT", "COMPLETIONS", "Inference", "refuse"]

log = logging.getLogger(__name__)

AnyBody = TypeVar("AnyBody", bound=Body)


@dataclass(frozen=True, slots=True)
class Path(Generic[AnyBody]):
    """What the two inference paths differ in."""

    name: str
    read: Callable[[bytes], AnyBody]
    request: Callable[[AnyBody], pb.GenerateRequest]
    reply: type[Reply]

    def read_request(self, raw: bytes) -> tuple[AnyBody, pb.GenerateRequest]:
        """Raises InvalidBodyError, UnsupportedError."""
        body = self.read(raw)
        return body, self.request(body)


CHAT: Path[ChatBody] = Path("chat_completions", read_chat, chat_request, ChatReply)
COMPLETIONS: Path[CompletionBody] = Path(
    "completions", read_completion, completion_request, CompletionReply
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is ready to be sent to a worker."""

    request: pb.GenerateRequest
    reply: Reply
    streams: bool


class Inference:
    """One inference path, as an ASGI application."""

    def __init__(
        self,
        path: Path[Any],
        front: Front,
        workers: Workers,
        bodies: BodyReader,
        metrics: GatewayMetrics,
        limits: ExchangeLimits,
        request_seconds_max: float,
    ) -> None:
        self._path = path
        self._front = front
        self._workers = workers
        self._bodies = bodies
        self._metrics = metrics
        self._limits = limits
        self._request_seconds_max = request_seconds_max

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send, self._limits)
        outcome = "failed"
        try:
            outcome = await self._serve(exchange)
        except Gone:
            outcome = "gone"
        except KvtierError as error:
            refusal = refusal_of(error)
            outcome = "refused" if refusal.status < 500 else "failed"
            await self._tell(exchange, refusal)
        except Exception:
            log.exception("a request failed")
            await self._tell(exchange, refusal_of(GatewayError("internal error; the log has it")))
        finally:
            self._metrics.ended(self._path.name, outcome)

    async def _serve(self, exchange: Exchange) -> str:
        """How it ended. Raises KvtierError, Gone."""
        key = self._front.key(exchange.header(b"authorization"))
        with self._front.admission.place(key.key_id):
            asked = await self._asked(key, await exchange.body(), exchange)
            attempt = self._workers.generate(asked.request, self._request_seconds_max)
            watcher = asyncio.create_task(exchange.watch(attempt.cancel))
            try:
                await self._answer(exchange, asked, attempt)
            finally:
                attempt.cancel()
                watcher.cancel()
        return "gone" if exchange.gone else "done"

    async def _asked(self, key: ApiKey, raw: bytes, exchange: Exchange) -> Asked:
        body, request = await self._bodies.read(self._path.read_request, raw)
        put_caller(
            request, caller_of(key, *body.user_said), service_class_of(key, body.service_tier)
        )
        request.client_request_id = exchange.header(b"x-client-request-id")
        reply = self._path.reply(
            request.sample_count,
            tells_usage=body.tells_usage,
            service_class=request.service_class,
        )
        return Asked(request, reply, body.streams)

    async def _answer(self, exchange: Exchange, asked: Asked, attempt: Attempt) -> None:
        responses = attempt.responses()
        try:
            if asked.streams:
                await self._stream(exchange, asked.reply, responses)
                return
            async for message in responses:
                asked.reply.collect(message)
        finally:
            await responses.aclose()  # type: ignore[attr-defined]
        if exchange.gone:
            return
        fields = asked.reply.whole(asked.request.HasField("logprobs"))
        self._metrics.first_byte(time.monotonic() - exchange.arrived_at)
        await exchange.answer(200, fields, _names(asked.reply))

    async def _stream(self, exchange: Exchange, reply: Reply, responses: Any) -> None:
        async for message in responses:
            for chunk in reply.chunks(message):
                if not exchange.began:
                    self._metrics.first_byte(time.monotonic() - exchange.arrived_at)
                    await exchange.open_stream(_names(reply))
                await exchange.event(chunk)
        if not exchange.gone:
            await exchange.close_stream(done=True)

    async def _tell(self, exchange: Exchange, refusal: Refusal) -> None:
        self._metrics.refused(refusal.reason)
        if exchange.gone:
            return
        try:
            if not exchange.began:
                await refuse(exchange, refusal)
                return
            await exchange.event(refusal.fields)
            await exchange.close_stream(done=False)
        except Gone:
            return


async def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """REQUIRES: nothing of the answer is out."""
    await exchange.answer(refusal.status, refusal.fields, tuple(refusal.headers))


def _names(reply: Reply) -> tuple[tuple[bytes, bytes], ...]:
    """What clients show where something went wrong."""
    return ((b"x-request-id", reply.request_id.encode()),)
