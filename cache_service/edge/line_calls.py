"""Calls that come over a session's line instead of gRPC: the same handlers, the same refusals.

    frame -> decode -> the line's own session? -> its opener's right not over? -> places left?
          -> handler of the gRPC call -> answer, or the status that gRPC would give

Who opened the session was let in as an engine, and the line is that session's, so there are no
roles to ask for; none of these calls is audited. Event loop only; the state is how many run, and
whether it drains.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from cache_service.errors import SessionUnknownError
from cache_service.session import UNKNOWN_SESSION
from cache_service.views import AttachedView
from kvtier.access import CertificateExpiredError
from kvtier.calls import Calls
from kvtier.serving import ErrorInterceptor, MalformedRequestError, ShuttingDownError
from kvtier.session_line import LineFrame, Method, Outcome
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc

__all__ = ["LineCalls"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    request: type[Message]
    waits: bool
    """Whether its handler may wait; the others have their answer at once."""


_ROWS = {
    Method.ACQUIRE_RESIDENT: _Row("AcquireResident", pb.AcquireResidentRequest, waits=False),
    Method.RESERVE_BLOCKS: _Row("ReserveBlocks", pb.ReserveBlocksRequest, waits=True),
    Method.COMMIT_BLOCKS: _Row("CommitBlocks", pb.CommitBlocksRequest, waits=True),
    Method.LOOKUP_PREFIX: _Row("LookupPrefix", pb.LookupPrefixRequest, waits=False),
}


class LineCalls:
    """What every line asks. `calls`: those in flight, of gRPC as of lines."""

    def __init__(
        self,
        servicer: cache_pb2_grpc.CacheServiceServicer,
        errors: ErrorInterceptor,
        calls: Calls,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._handlers = {method: getattr(servicer, row.name) for method, row in _ROWS.items()}
        self._errors = errors
        self._calls = calls
        self._wall_clock = wall_clock
        self._draining = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """From now on calls are told that the service ends; running ones go on."""
        self._draining = True

    async def ended(self, seconds: float) -> None:
        """Returns when no call runs any more, or after so long. REQUIRES: `drain` was called."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("calls over lines are cut short", extra={"call_count": self._running})

    def waits(self, frame: LineFrame) -> bool:
        """Whether `answer` may wait. Else it ends at its first step."""
        return _ROWS[Method(frame.kind)].waits

    async def answer(self, session: AttachedView, frame: LineFrame) -> LineFrame:
        """The answer's frame; whatever goes wrong is one too."""
        row = _ROWS[Method(frame.kind)]
        try:
            message = await self._call(session, row, frame)
            return LineFrame(frame.call, Outcome.ANSWER, message.SerializeToString())
        except Exception as error:
            status = self._errors.status(error, row.name)
            return LineFrame(frame.call, Outcome.STATUS, status.SerializeToString())

    async def _call(self, session: AttachedView, row: _Row, frame: LineFrame) -> Message:
        try:
            request: Any = row.request.FromString(frame.message)
        except (DecodeError, ValueError) as error:
            raise MalformedRequestError(
                "the request does not parse; send the message of kvtier.v1",
                problem=str(error)[:200],
            ) from None
        if request.session_id != session.session_id:
            raise SessionUnknownError(UNKNOWN_SESSION)
        if session.not_after <= self._wall_clock():
            raise CertificateExpiredError("the certificate has expired; connect with a new one")
        if self._draining:
            raise ShuttingDownError("the service is ending; try again, or another one")
        self._calls.begin(session.session_id)
        self._running += 1
        self._idle.clear()
        try:
            handler: Callable[[Any, None], Coroutine[Any, Any, Message]] = self._handlers[
                Method(frame.kind)
            ]
            return await handler(request, None)
        finally:
            self._calls.end(session.session_id)
            self._running -= 1
            if not self._running:
                self._idle.set()
