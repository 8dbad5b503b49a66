"""uvicorn's HTTP protocol, with an end to what one connection may cost before its request is read.

    first byte -> head, of so many bytes and seconds -> body, of so many bytes as they come

uvicorn reads heads of any size for any time, takes what follows a body in pieces (trailers) for
headers, lets requests queue behind the one that is answered, and tells only the last of them that
the connection ended. What is beyond a bound is told in OpenAI's shape where nothing else is being
answered, and the connection ends. Invariant: a connection that ends ends every request of it. Event
loop; one object a connection.
"""

import asyncio
import json
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.errors import BodyTooLargeError, GatewayError, HeadLateError, HeadTooLargeError
from gateway.status import refusal_of

__all__ = ["HEAD_BYTES_MAX", "HEAD_SECONDS_MAX", "BoundedProtocol", "bounded_protocol"]

HEAD_BYTES_MAX = 64 << 10
"""Of a request's line and headers, as they come. An API key and a cookie or two are a few KiB."""

HEAD_SECONDS_MAX = 10.0
"""From a connection's beginning, or a later request's first byte, to the end of its head."""

LINGER_SECONDS = 1.0
"""What still comes is read and dropped for so long: to close on it would take the answer back."""

QUEUED_MAX = 16
"""Requests of one connection that wait behind the one that is answered."""


class _Beyond(Exception):
    """Ends the parser's run; `_refusal` says why."""


class BoundedProtocol(HttpToolsProtocol):
    body_bytes_max = 0
    """Raw bytes of a body, with what its pieces cost."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._reads_head = False
        self._fed_bytes = 0
        """Of the request that is being read, as they came, but for a piece that it shares with the
        one before."""
        self._piece_bytes = 0
        self._ended = False
        self._answered: RequestResponseCycle | None = None
        self._refusal: GatewayError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (*waiting, self._answered):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._piece_bytes = len(data)
        self._fed_bytes += len(data)
        super().data_received(data)
        if self._reads_head:
            if self._fed_bytes > HEAD_BYTES_MAX:
                self._end(_head_too_large())
            elif self._head_timer is None:
                self._wait_for_head()
        elif self._fed_bytes > HEAD_BYTES_MAX + self.body_bytes_max:
            self._end(BodyTooLargeError("the body has more bytes than are taken here"))

    def send_400_response(self, msg: str) -> None:
        if self._refusal is not None:
            self._end(self._refusal)
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    # The parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reads_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reads_head:  # else it is a trailer
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reads_head = False
        self._head_came()
        came = max(self._fed_bytes, self._piece_bytes)
        if came > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX:
            self._refusal = _head_too_large()
            raise _Beyond
        if len(self.pipeline) >= QUEUED_MAX:
            self._refusal = HeadTooLargeError("more requests in a row than a connection may have")
            raise _Beyond
        super().on_headers_complete()
        if self.pipeline:  # which pauses reading, and with it the news that the caller left
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._fed_bytes = 0

    # Ours

    def _head_bytes(self) -> int:
        """As they came, but for spaces around values."""
        lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        return len(self.url) + len("GET  HTTP/1.1\r\n\r\n") + lines

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self._head_is_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._answers:
            self._wait_for_head()  # the one that is answered is not cut for the next one's sake
        elif self._reads_head:
            self._end(HeadLateError(f"no whole head within {HEAD_SECONDS_MAX:g} s; send again"))
        else:
            self.transport.close()

    @property
    def _answers(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _end(self, error: GatewayError) -> None:
        """Of the connection; says why where that cannot be taken for a part of an answer."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        if self._answers:
            self.transport.close()
            return
        refusal = refusal_of(error)
        raw = json.dumps(refusal.fields).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
        line = STATUS_LINE[refusal.status]
        self.transport.write(b"%s%s\r\n\r\n%s" % (line, head % len(raw), raw))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def bounded_protocol(body_bytes_max: int) -> type[BoundedProtocol]:
    """`body_bytes_max`: of what a body says; its pieces may cost as much again."""
    return type("Bounded", (BoundedProtocol,), {"body_bytes_max": 2 * body_bytes_max})


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(f"the request's head has more than {HEAD_BYTES_MAX} bytes")
