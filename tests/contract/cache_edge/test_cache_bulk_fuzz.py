"""Anything said on the bulk lane: to a real service, and to the worker's client. Typed answers,
nothing left held, no growth of threads."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier import bulk
from kvtier.bulk import Frame, Kind
from kvtier.bulk_socket import FrameSocket
from kvtier.keys import BlockHash
from kvtier.v1 import bulk_pb2, bulk_pb2_grpc
from kvtier.v1 import cache_pb2 as pb
from worker.bulk_lane import BulkLanes, LaneStoppedError, Loaded
from worker.transfer import NonsenseError, TimeUpError

SMALL = st.integers(0, 3)
U64 = st.one_of(st.integers(0, 5000), st.integers(0, 2**64 - 1))

frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    call=SMALL,
    index=st.one_of(SMALL, st.integers(0, 2**32 - 1)),
    offset=U64,
    length=U64,
)
said = st.lists(
    st.one_of(
        frames.map(bulk.pack),
        st.binary(max_size=200),
        st.sampled_from(["load", "store", "data"]),
        st.integers(1, 5000).map(bytes),
    ),
    max_size=8,
)

quiet = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def spoken(words: list[Any], lease_id: str, reservation_id: str) -> bytes:
    good = {
        "load": bulk.pack(Frame(Kind.LOAD, 1, 0, 0, 20)) + bulk.pack_load(bulk.raw_id(lease_id), 2),
        "store": bulk.pack(Frame(Kind.STORE, 1, length=16)) + bulk.raw_id(reservation_id),
        "data": bulk.pack(Frame(Kind.DATA, 1, 0, 0, 1000)) + bytes(1000),
    }
    return b"".join(good[word] if isinstance(word, str) else word for word in words)


@pytest.fixture(scope="module")
def small(make_service: Any) -> Any:
    return make_service(ssd={"enabled": False})


@quiet
@given(words=said, greets=st.booleans())
def test_a_service_answers_anything_with_frames_and_holds_nothing(
    small: Any, open_peer: Any, tools: Any, words: list[Any], greets: bool
) -> None:
    peer = open_peer(small, "bulk")
    chain = tools.fresh_chain(2)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    reserved = peer.reserve(tools.fresh_chain(1))
    host, _, port = small.server.bulk_listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        answers = FrameSocket(connection, bulk.FROM_SERVICE)
        if greets:
            stub = bulk_pb2_grpc.BulkServiceStub(small.channel)
            request = bulk_pb2.OpenBulkLaneRequest(session_id=peer.id)
            ticket = stub.OpenBulkLane(request, timeout=10).ticket
            answers.send(Frame(Kind.HELLO, length=32), ticket)
            assert answers.receive_header().kind is Kind.WELCOME
        with contextlib.suppress(OSError):
            connection.sendall(spoken(words, lease_id, reserved.reservation_id))
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while (frame := answers.await_header()) is not None:
                answers.receive(frame.length)
    peer.release(lease_id)
    small.stub.AbortReservation(
        pb.AbortReservationRequest(session_id=peer.id, reservation_id=reserved.reservation_id),
        timeout=10,
    )
    small.until(lambda stats: not stats.reservation_count)
    until = time.monotonic() + 10
    while small.bulk_side().transfer_count and time.monotonic() < until:
        time.sleep(0.005)
    assert small.bulk_side().transfer_count == 0
    small.check_integrity()


@pytest.fixture
def babbler() -> Iterator[Any]:
    """`babbler(bytes)`: a port that says them to everybody after their HELLO, then hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    words = [b""]

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(4096)
                connection.sendall(bulk.pack(Frame(Kind.WELCOME)) + words[0])
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()

    def say(what: bytes) -> int:
        words[0] = what
        port: int = listener.getsockname()[1]
        return port

    yield say
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@quiet
@given(words=said, loads=st.booleans())
def test_a_client_takes_nothing_wrong_from_anybody(
    babbler: Any, words: list[Any], loads: bool
) -> None:
    port = babbler(spoken(words, "00" * 16, "00" * 16))
    told = bulk_pb2.OpenBulkLaneResponse(port=port, ticket=bytes(32))
    lanes = BulkLanes(lambda _: told, "127.0.0.1", None, False)
    page = np.zeros(1000, dtype=np.uint8)
    loaded, wrong = Loaded(), 1
    began = time.monotonic()
    try:
        if loads:
            block = (BlockHash(bytes(32)), page, wrong)
            lanes.load("00" * 16, 0, [block], began + 5, loaded)
        else:
            blocks = [(0, page.data)]
            lanes.store("00" * 16, blocks, began + 5, lambda: None, lambda count: None)
    except (LaneStoppedError, NonsenseError, TimeUpError, OSError, grpc.RpcError):
        pass
    finally:
        lanes.close()
    assert loaded.count == 0, "no bytes have this checksum"
