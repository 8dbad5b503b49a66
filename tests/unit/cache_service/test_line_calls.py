"""What stands between a session's line and the handlers of its calls."""

import asyncio
import logging
from typing import Any, cast

import pytest
from google.rpc import error_details_pb2, status_pb2

from cache_service.edge.line_calls import LineCalls
from cache_service.status import STATUS_TABLE
from cache_service.views import AttachedView
from kvtier.access import CallLimits
from kvtier.calls import Calls
from kvtier.serving import ErrorInterceptor
from kvtier.session_line import LineFrame, Method, Outcome
from kvtier.v1 import cache_pb2 as pb

SESSION = AttachedView("mine", not_after=2000.0)
REQUEST = pb.ReserveBlocksRequest(session_id="mine").SerializeToString()


class Servicer:
    """Its reserves wait until they are let go, or fail with what they are told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def ReserveBlocks(self, request: Any, context: Any) -> pb.ReserveBlocksResponse:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return pb.ReserveBlocksResponse(reservation_id="r")

    async def AcquireResident(self, request: Any, context: Any) -> pb.AcquireResidentResponse:
        return pb.AcquireResidentResponse()

    async def LookupPrefix(self, request: Any, context: Any) -> pb.LookupPrefixResponse:
        return pb.LookupPrefixResponse()

    async def CommitBlocks(self, request: Any, context: Any) -> pb.CommitBlocksResponse:
        return pb.CommitBlocksResponse()


class World:
    def __init__(self) -> None:
        self.servicer, self.now = Servicer(), 1000.0
        self.in_flight = Calls(CallLimits(calls_per_session_max=2))
        self.calls = LineCalls(
            cast(Any, self.servicer),
            ErrorInterceptor(STATUS_TABLE),
            self.in_flight,
            lambda: self.now,
        )

    async def reserve(self) -> str:
        """The reservation's id, or the reason why there is none."""
        frame = LineFrame(7, Method.RESERVE_BLOCKS, REQUEST)
        answer = await self.calls.answer(SESSION, frame)
        assert answer.call == 7
        if answer.kind == Outcome.ANSWER:
            return pb.ReserveBlocksResponse.FromString(answer.message).reservation_id
        info = error_details_pb2.ErrorInfo()
        status_pb2.Status.FromString(answer.message).details[0].Unpack(info)
        return info.reason


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_session_has_so_many_calls_in_flight(world: World) -> None:
    waiting = [asyncio.create_task(world.reserve()) for _ in range(2)]
    await asyncio.sleep(0)
    assert world.in_flight.count == 2
    assert await world.reserve() == "TOO_MANY_CALLS"
    world.servicer.go.set()
    assert [await each for each in waiting] == ["r", "r"]
    assert world.in_flight.count == 0
    assert await world.reserve() == "r"


async def test_a_call_that_is_cancelled_gives_its_place_back(world: World) -> None:
    waiting = asyncio.create_task(world.reserve())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert world.in_flight.count == 0


async def test_the_end_of_the_openers_certificate_ends_its_calls(world: World) -> None:
    world.servicer.go.set()
    assert await world.reserve() == "r"
    world.now = SESSION.not_after
    assert await world.reserve() == "CERTIFICATE_EXPIRED"


async def test_while_it_drains_running_calls_end_and_new_ones_are_told(world: World) -> None:
    running = asyncio.create_task(world.reserve())
    await asyncio.sleep(0)
    world.calls.drain()
    assert await world.reserve() == "SHUTTING_DOWN"
    world.servicer.go.set()
    assert await running == "r"


async def test_a_fault_of_ours_is_told_as_one_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.servicer.go.set()
    world.servicer.error = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR):
        assert await world.reserve() == "INTERNAL"
    assert any(record.exc_info for record in caplog.records)
    assert world.in_flight.count == 0


async def test_its_end_waits_for_running_calls_and_not_for_ever(world: World) -> None:
    world.calls.drain()
    await world.calls.ended(10.0)
    other = World()
    running = asyncio.create_task(other.reserve())
    await asyncio.sleep(0)
    other.calls.drain()
    await other.calls.ended(0.01)
    assert not running.done()
    ending = asyncio.create_task(other.calls.ended(10.0))
    await asyncio.sleep(0)
    assert not ending.done()
    other.servicer.go.set()
    assert await running == "r"
    await ending
