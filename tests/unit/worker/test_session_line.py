"""The client's end of a session's line: each answer to its own call, no wait without an end."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from kvtier.errors import KvtierError, read_error, status_of
from kvtier.session_line import (
    FRAME_BYTES_MAX,
    FROM_CLIENT,
    Frames,
    LineFrame,
    Method,
    Outcome,
    pack,
)
from kvtier.v1 import cache_pb2 as pb
from worker.session_line import LineCallError, LineFuture, SessionLine
from worker.transfer import NonsenseError

SECONDS = 5.0


class Peer:
    """The service's end, by hand."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        self.connection = connection
        self._frames = Frames(FROM_CLIENT)
        self._came: list[LineFrame] = []

    def next(self) -> LineFrame:
        while not self._came:
            data = self.connection.recv(4096)
            assert data, "the client hung up"
            self._came += self._frames.feed(data)
        return self._came.pop(0)

    def answer(self, frame: LineFrame, count: int) -> None:
        message = pb.CommitBlocksResponse(committed_count=count).SerializeToString()
        self.connection.sendall(pack(LineFrame(frame.call, Outcome.ANSWER, message)))


@pytest.fixture
def ends() -> Iterator[tuple[SessionLine, Peer]]:
    ours, theirs = socket.socketpair()
    line = SessionLine(ours)
    with theirs:
        yield line, Peer(theirs)
        line.close()


def call(line: SessionLine, name: str = "", seconds: float = SECONDS) -> LineFuture[Any]:
    request = pb.CommitBlocksRequest(reservation_id=name)
    return line.call(Method.COMMIT_BLOCKS, request, pb.CommitBlocksResponse, seconds)


def name_of(frame: LineFrame) -> str:
    return pb.CommitBlocksRequest.FromString(frame.message).reservation_id


def test_answers_in_any_order_reach_their_own_calls(ends: tuple[SessionLine, Peer]) -> None:
    line, peer = ends
    count = 64

    def serve() -> None:
        frames = [peer.next() for _ in range(count)]
        for frame in sorted(frames, key=lambda frame: hash((frame.call * 7919) % 64)):
            peer.answer(frame, int(name_of(frame)))

    with ThreadPoolExecutor(count + 1) as threads:
        served = threads.submit(serve)
        asked = [threads.submit(lambda i=i: call(line, str(i)).result()) for i in range(count)]  # type: ignore[misc]
        assert [each.result(SECONDS).committed_count for each in asked] == list(range(count))
        served.result(SECONDS)


def test_a_thread_that_reads_hands_over_when_its_own_answer_came(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    first, second = call(line, "first"), call(line, "second")
    frames = [peer.next(), peer.next()]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(first.result), threads.submit(second.result)]
        for frame, number in zip(frames, (1, 2), strict=True):
            peer.answer(frame, number)
            assert waiting[number - 1].result(SECONDS).committed_count == number


def test_a_call_ends_when_its_time_is_up_and_its_late_answer_is_no_others(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    late = call(line, "late", seconds=0.05)
    with pytest.raises(LineCallError) as raised:
        late.result()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    peer.answer(peer.next(), 1)
    next_one = call(line, "next")
    peer.answer(peer.next(), 2)
    assert next_one.result().committed_count == 2
    assert late.result().committed_count == 1


def test_one_that_waits_behind_a_reader_ends_in_time_too(ends: tuple[SessionLine, Peer]) -> None:
    line, peer = ends
    long, short = call(line, seconds=SECONDS), call(line, seconds=0.1)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(long.result)
        error = short.exception()
        assert isinstance(error, LineCallError)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        peer.answer(peer.next(), 7)
        assert reading.result(SECONDS).committed_count == 7


def test_a_status_is_read_as_grpcs_own(ends: tuple[SessionLine, Peer]) -> None:
    line, peer = ends
    asked = call(line)
    status = status_of(KvtierError("not so"), grpc.StatusCode.FAILED_PRECONDITION)
    frame = LineFrame(peer.next().call, Outcome.STATUS, status.SerializeToString())
    peer.connection.sendall(pack(frame))
    with pytest.raises(grpc.RpcError) as raised:
        asked.result()
    wire = read_error(raised.value)
    assert (wire.code, wire.reason, wire.message) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "INTERNAL",
        "not so",
    )


@pytest.mark.parametrize("kind", [Outcome.ANSWER, Outcome.STATUS])
def test_a_message_that_does_not_parse_is_nonsense(
    ends: tuple[SessionLine, Peer], kind: Outcome
) -> None:
    line, peer = ends
    asked = call(line)
    peer.connection.sendall(pack(LineFrame(peer.next().call, kind, b"\xff\xff\xff")))
    with pytest.raises(NonsenseError):
        asked.result()


def hang_up(peer: Peer) -> None:
    peer.connection.shutdown(socket.SHUT_RDWR)


def babble(peer: Peer) -> None:
    peer.connection.sendall(b"no frame at all, by any means")


@pytest.mark.parametrize(("ends_it", "kind"), [(hang_up, LineCallError), (babble, NonsenseError)])
def test_a_broken_line_ends_every_call_and_takes_no_more(
    ends: tuple[SessionLine, Peer], ends_it: Callable[[Peer], None], kind: type[Exception]
) -> None:
    line, peer = ends
    asked = [call(line) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        errors = [threads.submit(each.exception) for each in asked]
        ends_it(peer)
        assert all(isinstance(each.result(SECONDS), kind) for each in errors)
    with pytest.raises(kind):
        call(line)


def test_closing_ends_who_waits(ends: tuple[SessionLine, Peer]) -> None:
    line, _ = ends
    asked = call(line)
    with ThreadPoolExecutor(1) as threads:
        error = threads.submit(asked.exception)
        time.sleep(0.02)
        line.close()
        assert isinstance(error.result(SECONDS), LineCallError)


def test_an_answer_that_nobody_waits_for_is_read_all_the_same(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    ended = threading.Semaphore(0)
    left = [call(line, str(i)) for i in range(3)]
    for each in left:
        each.add_done_callback(lambda done: ended.release())
    for frame in [peer.next() for _ in range(3)]:
        peer.answer(frame, 5)
    for _ in range(3):
        assert ended.acquire(timeout=SECONDS)
    assert [each.result().committed_count for each in left] == [5, 5, 5]


BIG = pb.CommitBlocksRequest(checksums=[2**60] * 200_000)


def big_call(line: SessionLine, seconds: float) -> LineFuture[Any]:
    return line.call(Method.COMMIT_BLOCKS, BIG, pb.CommitBlocksResponse, seconds)


def ran_out(error: BaseException | None) -> bool:
    return isinstance(error, LineCallError) and (error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)


def test_a_service_that_does_not_read_holds_nobody_beyond_the_deadline(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, _ = ends
    assert ran_out(big_call(line, 0.1).exception())
    for _ in range(3):
        with pytest.raises(LineCallError) as raised:
            call(line, seconds=0.1)
        assert ran_out(raised.value)


def test_a_hurried_call_of_a_large_frame_leaves_the_line_whole(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    hurried = big_call(line, 0.05)
    assert ran_out(hurried.exception())
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(lambda i=i: call(line, str(i)).result()) for i in range(2)]  # type: ignore[misc]
        frames = [peer.next() for _ in range(3)]
        assert frames[0].message == BIG.SerializeToString()
        peer.answer(frames[0], 77)
        for frame in frames[1:]:
            peer.answer(frame, int(name_of(frame)))
        assert [each.result(SECONDS).committed_count for each in asked] == [0, 1]
    assert call_again(line, peer) == 5


def call_again(line: SessionLine, peer: Peer) -> int:
    asked = call(line)
    peer.answer(peer.next(), 5)
    count: int = asked.result().committed_count
    return count


def test_a_hurried_call_that_somebody_left_is_finished_without_another_call(
    ends: tuple[SessionLine, Peer],
) -> None:
    """Else the service would hold what it got of it, and never give what was reserved."""
    line, peer = ends
    hurried = big_call(line, 0.05)
    assert ran_out(hurried.exception())
    came = threading.Event()
    hurried.add_done_callback(lambda done: came.set())
    peer.answer(peer.next(), 3)
    assert came.wait(SECONDS)
    assert hurried.result().committed_count == 3
    assert call_again(line, peer) == 5


def test_who_waits_for_anothers_sending_ends_in_its_own_time(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    with ThreadPoolExecutor(2) as threads:
        sending = threads.submit(big_call, line, SECONDS)
        assert select.select([peer.connection], [], [], SECONDS)[0]
        with pytest.raises(LineCallError) as raised:
            threads.submit(call, line, "short", 0.1).result(SECONDS / 2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Nothing of it went out, so the line is as good as before.
        peer.answer(peer.next(), 1)
        assert sending.result(SECONDS).result().committed_count == 1


def test_a_line_that_breaks_while_it_sends_ends_who_reads(ends: tuple[SessionLine, Peer]) -> None:
    line, peer = ends
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(call(line, seconds=60.0).exception)
        sending = threads.submit(big_call, line, SECONDS)
        peer.next()
        assert select.select([peer.connection], [], [], SECONDS)[0]
        peer.connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LineCallError):
            sending.result(SECONDS).result()
        error = reading.result(SECONDS)
        assert isinstance(error, LineCallError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_who_sends_reads_too_so_that_neither_end_waits_for_the_other(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    asked = call(line, "first")
    first = peer.next()

    def serve() -> None:
        status = status_pb2.Status(code=13, message="x" * 4_000_000).SerializeToString()
        # It reads nothing before all of its answer is taken.
        peer.connection.sendall(pack(LineFrame(first.call, Outcome.STATUS, status)))
        peer.answer(peer.next(), 2)

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        assert big_call(line, SECONDS).result().committed_count == 2
        served.result(SECONDS)
    assert isinstance(asked.exception(), LineCallError)


def test_a_call_too_long_for_a_frame_is_refused_and_breaks_nothing(
    ends: tuple[SessionLine, Peer],
) -> None:
    line, peer = ends
    request = pb.CommitBlocksRequest(reservation_id="x" * FRAME_BYTES_MAX)
    with pytest.raises(LineCallError) as raised:
        line.call(Method.COMMIT_BLOCKS, request, pb.CommitBlocksResponse, SECONDS)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    asked = call(line)
    peer.answer(peer.next(), 1)
    assert asked.result().committed_count == 1


def test_an_answer_that_comes_late_reaches_who_left_a_callback(
    ends: tuple[SessionLine, Peer],
) -> None:
    """A reservation that nobody waits for any more has to be given back all the same."""
    line, peer = ends
    late = call(line, "late", seconds=0.05)
    assert isinstance(late.exception(), LineCallError)
    came = threading.Event()
    late.add_done_callback(lambda done: came.set())
    assert not came.wait(0.2)
    peer.answer(peer.next(), 3)
    assert came.wait(SECONDS)
    assert late.result().committed_count == 3


def test_no_thread_outlives_a_line_that_was_closed(ends: tuple[SessionLine, Peer]) -> None:
    line, _ = ends
    asked = call(line)
    line.close()
    before = threading.active_count()
    ended = threading.Event()
    asked.add_done_callback(lambda done: ended.set())
    assert ended.wait(SECONDS)
    left = [each for each in threading.enumerate() if each.name == "cache-line-left"]
    for each in left:
        each.join(SECONDS)
    assert threading.active_count() <= before


def test_a_callback_that_fails_does_not_end_the_others(ends: tuple[SessionLine, Peer]) -> None:
    line, peer = ends

    def fail(done: LineFuture[Any]) -> None:
        raise ZeroDivisionError

    called = threading.Event()
    first, second = call(line), call(line)
    first.add_done_callback(fail)
    second.add_done_callback(lambda done: called.set())
    for frame in (peer.next(), peer.next()):
        peer.answer(frame, 1)
    assert called.wait(SECONDS)
