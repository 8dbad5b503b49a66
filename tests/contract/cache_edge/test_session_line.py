"""Calls over a session's line, which is the arena's socket or a connection of the bulk lane: the
answers of the gRPC calls, for the line's own session."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from kvtier.keys import pack_hashes
from kvtier.session_line import FROM_SERVICE, Frames, LineFrame, Method, Outcome, pack
from kvtier.v1 import cache_pb2 as pb
from worker.bulk_lane import IDLE_MAX

SECONDS = 10.0


class Line:
    """Spoken by hand."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        self.connection = connection
        self._frames = Frames(FROM_SERVICE)
        self._came: list[LineFrame] = []
        self._calls = 0

    def send(self, method: int, request: Message | bytes) -> None:
        self._calls += 1
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        self.connection.sendall(pack(LineFrame(self._calls, method, raw)))

    def next(self) -> LineFrame:
        while not self._came:
            data = self.connection.recv(1 << 16)
            if not data:
                raise EOFError
            self._came += self._frames.feed(data)
        return self._came.pop(0)

    def ask(self, method: Method, request: Message | bytes) -> LineFrame:
        self.send(method, request)
        frame = self.next()
        assert frame.call == self._calls
        return frame


def reason(frame: LineFrame) -> str:
    assert frame.kind == Outcome.STATUS
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(frame.message).details[0].Unpack(info)
    return info.reason


TRANSPORTS = ("shared_memory", "bulk")
both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(params=TRANSPORTS)
def peer(service: Any, open_peer: Any, request: Any) -> Any:
    return open_peer(service, request.param)


@pytest.fixture
def line_of() -> Iterator[Callable[[Any], Line]]:
    with contextlib.ExitStack() as made:

        def make(peer: Any) -> Line:
            if peer.lanes is None:
                return Line(peer.connection)
            until = time.monotonic() + SECONDS
            peer.lanes.connect(until)
            return Line(made.enter_context(peer.lanes.line(until)))

        yield make


@pytest.fixture
def line(peer: Any, line_of: Callable[[Any], Line]) -> Line:
    return line_of(peer)


def acquire(peer: Any, chain: Any) -> pb.AcquireResidentRequest:
    return pb.AcquireResidentRequest(session_id=peer.id, block_hashes=pack_hashes(chain))


def reserve(peer: Any, chain: Any) -> pb.ReserveBlocksRequest:
    return pb.ReserveBlocksRequest(session_id=peer.id, block_hashes=pack_hashes(chain))


def test_a_prefix_goes_in_and_out_over_the_line_alone(peer: Any, line: Line, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    answer = line.ask(Method.RESERVE_BLOCKS, reserve(peer, chain))
    reserved = pb.ReserveBlocksResponse.FromString(answer.message)
    assert list(reserved.missing_indexes) == [0, 1, 2]
    checksums = peer.write(reserved, chain)
    committed = line.ask(
        Method.COMMIT_BLOCKS,
        pb.CommitBlocksRequest(
            session_id=peer.id, reservation_id=reserved.reservation_id, checksums=checksums
        ),
    )
    assert pb.CommitBlocksResponse.FromString(committed.message).committed_count == 3
    acquired = line.ask(Method.ACQUIRE_RESIDENT, acquire(peer, chain))
    answered = pb.AcquireResidentResponse.FromString(acquired.message)
    peer.chains[answered.match.lease_id] = chain
    assert peer.read([answered]) == [page.tobytes() for page in tools.filled_pages(chain)]
    looked = line.ask(
        Method.LOOKUP_PREFIX,
        pb.LookupPrefixRequest(session_id=peer.id, block_hashes=pack_hashes(chain)),
    )
    assert pb.LookupPrefixResponse.FromString(looked.message) == peer.lookup(chain)
    over_grpc = peer.acquire_resident(chain)
    assert list(over_grpc.ready.checksums) == list(answered.ready.checksums)


def test_what_is_wrong_is_told_in_grpcs_words(peer: Any, line: Line, tools: Any) -> None:
    bad = pb.ReserveBlocksRequest(session_id=peer.id, block_hashes=b"x" * 31)
    assert reason(line.ask(Method.RESERVE_BLOCKS, bad)) == "MALFORMED_HASHES"
    assert reason(line.ask(Method.ACQUIRE_RESIDENT, b"\xff\xff")) == "MALFORMED_REQUEST"
    unknown = pb.CommitBlocksRequest(session_id=peer.id, reservation_id="none")
    assert reason(line.ask(Method.COMMIT_BLOCKS, unknown)) == "RESERVATION_UNKNOWN"


@both_transports
def test_a_line_serves_its_own_session_only(
    service: Any, open_peer: Any, peer: Any, line: Line, tools: Any, transport: str
) -> None:
    other, chain = open_peer(service, transport), tools.fresh_chain(1)
    assert reason(line.ask(Method.ACQUIRE_RESIDENT, acquire(other, chain))) == "SESSION_UNKNOWN"
    foreign = other.reserve(chain)
    taken = pb.CommitBlocksRequest(
        session_id=peer.id, reservation_id=foreign.reservation_id, checksums=[1]
    )
    assert reason(line.ask(Method.COMMIT_BLOCKS, taken)) == "RESERVATION_UNKNOWN"
    nobody = pb.AcquireResidentRequest(block_hashes=pack_hashes(chain))
    assert reason(line.ask(Method.ACQUIRE_RESIDENT, nobody)) == "SESSION_UNKNOWN"


def test_a_session_closed_over_grpc_is_over_on_its_line(
    service: Any, peer: Any, line: Line, tools: Any
) -> None:
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=peer.id), timeout=SECONDS)
    asked = acquire(peer, tools.fresh_chain(1))
    try:
        assert reason(line.ask(Method.ACQUIRE_RESIDENT, asked)) == "SESSION_UNKNOWN"
    except (EOFError, OSError):
        assert peer.lanes is not None  # whose connections are cut with the next tick
    if peer.lanes is not None:
        with pytest.raises((EOFError, OSError)):
            line.next()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 12,
        pack(LineFrame(1, 0, b"")),
        pack(LineFrame(1, 5, b"")),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_call_cuts_the_line(
    service: Any, peer: Any, line: Line, said: bytes, tools: Any
) -> None:
    before = service.stats().session_count
    line.connection.sendall(said)
    with pytest.raises((EOFError, ConnectionResetError)):
        line.next()
    if peer.lanes is None:  # whose connection the session hangs on
        service.until(lambda stats: stats.session_count < before)
    else:
        peer.store(tools.fresh_chain(1))


def test_a_line_that_ends_is_no_connection_of_the_bulk_lane_any_more(
    service: Any, open_peer: Any, line_of: Callable[[Any], Line]
) -> None:
    peer = open_peer(service, "bulk")
    lines = [line_of(peer) for _ in range(3)]
    service.until(lambda _: service.server.cache.bulk.lane_count == 3 + IDLE_MAX)
    for line in lines:
        line.connection.close()
    service.until(lambda _: service.server.cache.bulk.lane_count == IDLE_MAX)


def test_many_calls_at_once_are_each_answered(peer: Any, line: Line, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    for _ in range(300):
        line.send(Method.ACQUIRE_RESIDENT, acquire(peer, chain))
    assert sorted(line.next().call for _ in range(300)) == list(range(1, 301))


def test_one_that_does_not_read_its_answers_is_not_read_from(
    service: Any, peer: Any, line: Line, tools: Any
) -> None:
    """It fills its own socket and no more; others are served meanwhile, and so is it, once it
    reads."""
    asked = pack(
        LineFrame(
            1, Method.ACQUIRE_RESIDENT, acquire(peer, tools.fresh_chain(1)).SerializeToString()
        )
    )
    line.connection.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            sent += line.connection.send(asked * 100)
    assert sent < 64 << 20
    service.stats()
    line.connection.settimeout(SECONDS)
    answered = 0
    while answered < sent // len(asked):
        line.next()
        answered += 1


@both_transports
def test_a_service_that_ends_ends_the_line(
    make_service: Any, open_peer: Any, line_of: Callable[[Any], Line], tools: Any, transport: str
) -> None:
    ending = make_service()
    peer = open_peer(ending, transport)
    line = line_of(peer)
    line.ask(Method.ACQUIRE_RESIDENT, acquire(peer, tools.fresh_chain(1)))
    ending.end()
    with pytest.raises((EOFError, ConnectionResetError)):
        line.next()


@both_transports
def test_a_service_that_ends_answers_the_calls_under_way_first(
    make_service: Any, open_peer: Any, line_of: Callable[[Any], Line], tools: Any, transport: str
) -> None:
    ending, chain = make_service(), tools.fresh_chain(2)
    first, second = (open_peer(ending, transport) for _ in range(2))
    first.reserve(chain[:1])
    line = line_of(second)
    answer = line.ask(Method.RESERVE_BLOCKS, reserve(second, chain))
    reserved = pb.ReserveBlocksResponse.FromString(answer.message)
    assert list(reserved.missing_indexes) == [1]
    # It waits for the block that the first one stores.
    line.send(
        Method.COMMIT_BLOCKS,
        pb.CommitBlocksRequest(
            session_id=second.id,
            reservation_id=reserved.reservation_id,
            checksums=second.write(reserved, chain),
        ),
    )
    ending.until(lambda stats: stats.reservation_count == 2)
    ending.end()
    committed = line.next()
    assert committed.kind == Outcome.ANSWER
    assert pb.CommitBlocksResponse.FromString(committed.message).committed_count == 0
    with pytest.raises((EOFError, ConnectionResetError)):
        line.next()
