"""SessionLine: a session's calls over the connection that its life hangs on.

    bytes -> frames -> answered at once, or a task each -> answers, in the order they are ready

Invariant: the connection's end ends every call that still waits; a peer that sends what is no
frame, or more calls than a session may have, is cut off or refused, and one that does not read its
answers is neither read from nor answered. However many calls come at once, others have their turn
after every `TURN_CALLS` of them. Event loop only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, cast

from cache_service.views import AttachedView
from kvtier.bulk import MalformedFrameError
from kvtier.session_line import FROM_CLIENT, Frames, LineFrame, pack

__all__ = ["LineDoor", "SessionLine"]

log = logging.getLogger(__name__)

TURN_CALLS = 8
"""Of a line, before the event loop looks at the others. An engine's line has one or two at a time;
one read may bring two thousand."""


class LineDoor(Protocol):
    """Who answers the calls."""

    def waits(self, frame: LineFrame) -> bool: ...

    def answer(self, session: AttachedView, frame: LineFrame) -> Coroutine[Any, Any, LineFrame]: ...


class SessionLine(asyncio.Protocol):
    """One session's. `ended` is done when the connection is."""

    def __init__(self, session: AttachedView, door: LineDoor) -> None:
        self._session = session
        self._door = door
        self._frames = Frames(FROM_CLIENT)
        self._frames_left: deque[LineFrame] = deque()
        """Read, not answered: of one read at most, since there is no other until it is empty."""
        self._turn: asyncio.Handle | None = None
        """The next, where one is to come."""
        self._writable = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._frames_left.clear()
        if self._turn is not None:
            self._turn.cancel()
        for task in self._tasks:
            task.cancel()
        if not self.ended.done():
            self.ended.set_result(None)

    def cut(self) -> None:
        """Ends the connection, and with it everything."""
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable = False
        self._read_on()

    def resume_writing(self) -> None:
        self._writable = True
        if self._turn is None:
            self._take_turn()

    def data_received(self, data: bytes) -> None:
        try:
            self._frames_left += self._frames.feed(data)
        except MalformedFrameError:
            log.warning("a session's line is cut: what came over it is no call")
            self.cut()
            return
        if self._turn is None:
            self._take_turn()

    def _take_turn(self) -> None:
        self._turn = None
        left = self._frames_left
        for _ in range(TURN_CALLS):
            if not left or not self._writable:
                break
            self._begin(left.popleft())
        if left and self._writable:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)
        self._read_on()

    def _read_on(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._writable and not self._frames_left:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _begin(self, frame: LineFrame) -> None:
        answer = self._door.answer(self._session, frame)
        if not self._door.waits(frame):
            self._send(_first_step(answer))
            return
        task = asyncio.get_running_loop().create_task(self._answer(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, answer: Coroutine[Any, Any, LineFrame]) -> None:
        self._send(await answer)

    def _send(self, frame: LineFrame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(frame))


def _first_step(answer: Coroutine[Any, Any, LineFrame]) -> LineFrame:
    """What a coroutine that does not wait returns; a task would take longer than the call."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return cast(LineFrame, stop.value)
    answer.close()
    raise AssertionError("a call that must not wait waited")
