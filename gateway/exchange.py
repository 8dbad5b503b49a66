"""One HTTP request and its answer, below what they say: body, headers, stream, heartbeats.

Invariants: a body never takes more than its limits of bytes and seconds; whoever is gone is known
at once, also while nothing is sent; a caller that takes nothing for `stall_seconds` is given up.
ASGI, event loop; one object a request.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import BodyLateError, BodyTooLargeError

__all__ = ["Exchange", "ExchangeLimits", "Gone"]

Receive = Callable[[], Any]
Send = Callable[[Any], Any]
Header = tuple[bytes, bytes]

_JSON: Header = (b"content-type", b"application/json")
_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that collect answers would hold tokens back.
    (b"x-accel-buffering", b"no"),
)
_HEARTBEAT = b": keep-alive\n\n"


class Gone(Exception):
    """The caller is not there any more."""


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    body_bytes_max: int
    body_seconds_max: float
    heartbeat_seconds: float
    stall_seconds: float


class Exchange:
    def __init__(self, scope: Any, receive: Receive, send: Send, limits: ExchangeLimits) -> None:
        self._headers: list[Header] = scope["headers"]
        self._receive = receive
        self._send = send
        self._limits = limits
        self._sent_at = time.monotonic()
        self._streams = False
        self._writing = asyncio.Lock()
        """Heartbeats come of a task of their own."""
        self.arrived_at = self._sent_at
        self.began = False
        """The answer's head is out: nothing can be refused with a status any more."""
        self.gone = False

    def header(self, name: bytes) -> str:
        """`name` in lower case; empty when it is missing."""
        return next((v.decode("latin-1") for k, v in self._headers if k == name), "")

    async def body(self) -> bytes:
        """Raises BodyTooLargeError, BodyLateError, Gone."""
        length = self.header(b"content-length")
        if length.isascii() and length.isdigit() and int(length) > self._limits.body_bytes_max:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds_max):
                return await self._read()
        except TimeoutError:
            raise BodyLateError(
                f"the body did not come within {self._limits.body_seconds_max:g} s; send again"
            ) from None

    async def _read(self) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            size += len(part)
            if size > self._limits.body_bytes_max:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"the body has more than the {self._limits.body_bytes_max} bytes that are taken here",
            body_bytes_max=self._limits.body_bytes_max,
        )

    async def watch(self, on_gone: Callable[[], None]) -> None:
        """Until the caller is gone, or takes nothing; sends heartbeats while a stream is silent.

        REQUIRES: the body was read.
        """
        try:
            while not await self._left():
                await self._beat()
        except Gone:
            pass  # it takes not even a heartbeat
        self.gone = True
        on_gone()

    async def _left(self) -> bool:
        """Whether the caller went away, within the time that a stream may be silent."""
        try:
            async with asyncio.timeout(self._limits.heartbeat_seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True

    async def _beat(self) -> None:
        silent = time.monotonic() - self._sent_at
        if self._streams and silent >= self._limits.heartbeat_seconds:
            await self._write(_HEARTBEAT, only_in_stream=True)

    async def answer(self, status: int, fields: Any, headers: tuple[Header, ...] = ()) -> None:
        """A whole answer in JSON."""
        raw = _encode(fields)
        length = (b"content-length", b"%d" % len(raw))
        await self._begin(status, [_JSON, length, *headers])
        await self._write(raw, more=False)

    async def open_stream(self, headers: tuple[Header, ...] = ()) -> None:
        await self._begin(200, [*_STREAM, *headers])
        self._streams = True

    async def event(self, fields: Any) -> None:
        """One event of the stream."""
        await self._write(b"data: " + _encode(fields) + b"\n\n")

    async def close_stream(self, done: bool) -> None:
        """`done`: with the word that ends a good one."""
        self._streams = False
        await self._write(b"data: [DONE]\n\n" if done else b"", more=False)

    async def _begin(self, status: int, headers: list[Header]) -> None:
        self.began = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, raw: bytes, more: bool = True, only_in_stream: bool = False) -> None:
        """Raises Gone."""
        self._sent_at = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.stall_seconds), self._writing:
                if only_in_stream and not self._streams:
                    return  # it ended while others wrote
                await self._send({"type": "http.response.body", "body": raw, "more_body": more})
        except TimeoutError:
            raise Gone from None


def _encode(fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
