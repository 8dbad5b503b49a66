"""A line's calls in turns: many at once do not keep the event loop from others."""

import asyncio
from typing import Any, cast

from cache_service.session_line import TURN_CALLS, SessionLine
from kvtier.session_line import LineFrame, Method, Outcome, pack

CALLS = 10 * TURN_CALLS


class Door:
    """Answers at once."""

    def waits(self, frame: LineFrame) -> bool:
        return False

    async def answer(self, session: Any, frame: LineFrame) -> LineFrame:
        return LineFrame(frame.call, Outcome.ANSWER, b"")


class Transport:
    """Counts answers, and says whether it is read from."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.closing = True


def opened() -> tuple[SessionLine, Transport]:
    line, transport = SessionLine(cast(Any, None), Door()), Transport()
    line.connection_made(cast(Any, transport))
    return line, transport


def calls(count: int) -> bytes:
    return b"".join(pack(LineFrame(i, Method.LOOKUP_PREFIX, b"")) for i in range(count))


async def test_others_have_their_turn_after_some_calls() -> None:
    line, transport = opened()
    line.data_received(calls(CALLS))
    seen = []
    while len(transport.written) < CALLS:
        assert not transport.reading
        seen.append(len(transport.written))
        await asyncio.sleep(0)
    assert seen == list(range(TURN_CALLS, CALLS, TURN_CALLS))
    assert transport.reading
    assert transport.written == [pack(LineFrame(i, Outcome.ANSWER, b"")) for i in range(CALLS)]


async def test_a_few_calls_are_answered_at_once() -> None:
    line, transport = opened()
    line.data_received(calls(TURN_CALLS))
    assert len(transport.written) == TURN_CALLS
    assert transport.reading


async def test_who_does_not_read_is_not_answered_any_more_until_it_does() -> None:
    line, transport = opened()
    line.data_received(calls(CALLS))
    line.pause_writing()
    for _ in range(CALLS):
        await asyncio.sleep(0)
    assert len(transport.written) == TURN_CALLS
    assert not transport.reading
    line.resume_writing()
    for _ in range(CALLS):
        await asyncio.sleep(0)
    assert len(transport.written) == CALLS
    assert transport.reading


async def test_what_is_left_of_a_line_that_ended_is_not_begun() -> None:
    line, transport = opened()
    line.data_received(calls(CALLS))
    line.connection_lost(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(transport.written) == TURN_CALLS
    assert line.ended.done()


async def test_calls_that_come_between_turns_wait_for_theirs() -> None:
    line, transport = opened()
    line.data_received(calls(2 * TURN_CALLS))
    line.data_received(calls(1))
    assert len(transport.written) == TURN_CALLS
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(transport.written) == 2 * TURN_CALLS + 1
