"""Frames over a real connection: payloads in any portions, headers with them, peers that stop."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kvtier import bulk
from kvtier.bulk import Frame, Kind
from kvtier.bulk_socket import GATHERED_BYTES, FrameSocket, ready

STALL_SECONDS = 0.3
Ends = tuple[FrameSocket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Of one connection: the receiver, and the peer's socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), 10)
        connection, _ = listener.accept()
    receiver = FrameSocket(connection, bulk.FROM_CLIENT, STALL_SECONDS)
    yield receiver, peer
    receiver.close()
    peer.close()


def data(size: int, seed: int) -> tuple[Frame, bytes]:
    return Frame(Kind.DATA, 1, seed, 0, size), bytes([seed]) * size


def said(*frames: tuple[Frame, bytes]) -> bytes:
    return b"".join(bulk.pack(frame) + payload for frame, payload in frames)


def in_portions(peer: socket.socket, words: bytes, size: int) -> threading.Thread:
    def send() -> None:
        for at in range(0, len(words), size):
            peer.sendall(words[at : at + size])

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def pieces_of(target: bytearray, size: int) -> list[memoryview]:
    view = memoryview(target)
    return [view[at : at + size] for at in range(0, len(target), size)]


SIZES = [GATHERED_BYTES, GATHERED_BYTES + 1, bulk.FRAME_BYTES_MAX]


@pytest.mark.parametrize("size", [1, 100, GATHERED_BYTES - 1, *SIZES])
@pytest.mark.parametrize("portion", [7001, GATHERED_BYTES, 4 << 20])
@pytest.mark.parametrize("more", [False, True])
def test_frames_come_whole_in_whatever_portions(
    ends: Ends, size: int, portion: int, more: bool
) -> None:
    receiver, peer = ends
    frames = [data(size, seed) for seed in range(1, 5)]
    thread = in_portions(peer, said(*frames), portion)
    for at, (frame, payload) in enumerate(frames):
        assert receiver.receive_header() == frame
        target = bytearray(size)
        follows = more and at + 1 < len(frames)
        receiver.receive_pieces(pieces_of(target, 200_000), more=follows)
        assert target == payload
    thread.join(10)
    # What is left of a level would have this byte waited for in vain.
    peer.sendall(said((Frame(Kind.CALLS), b"")))
    assert receiver.await_header() == Frame(Kind.CALLS)


@pytest.mark.parametrize("size", SIZES)
def test_a_payload_is_there_also_when_no_header_comes_after_it(ends: Ends, size: int) -> None:
    receiver, peer = ends
    frame, payload = data(size, 9)
    thread = in_portions(peer, said((frame, payload)) + bulk.pack(frame)[:10], 4 << 20)
    receiver.receive_header()
    target = bytearray(size)
    receiver.receive_pieces([memoryview(target)], more=True)
    assert target == payload
    thread.join(10)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        receiver.receive_header()


@pytest.mark.parametrize("came", [0, 1, GATHERED_BYTES - 1, GATHERED_BYTES + 5])
@pytest.mark.parametrize("more", [False, True])
def test_a_peer_that_goes_away_within_a_payload_is_gone_at_once(
    ends: Ends, came: int, more: bool
) -> None:
    receiver, peer = ends
    frame, payload = data(bulk.FRAME_BYTES_MAX, 3)
    peer.sendall(said((frame, payload[:came])))
    peer.shutdown(socket.SHUT_WR)
    receiver.receive_header()
    with pytest.raises(ConnectionResetError):
        receiver.receive_pieces([memoryview(bytearray(frame.length))], more=more)


@pytest.mark.parametrize("came", [0, 1, GATHERED_BYTES - 1, GATHERED_BYTES + 5])
def test_a_peer_that_stops_within_a_payload_is_given_up(ends: Ends, came: int) -> None:
    receiver, peer = ends
    frame, payload = data(bulk.FRAME_BYTES_MAX, 3)
    peer.sendall(said((frame, payload[:came])))
    receiver.receive_header()
    with pytest.raises(TimeoutError):
        receiver.receive_pieces([memoryview(bytearray(frame.length))], more=True)


def test_a_wait_for_a_payload_ends_at_the_deadline(ends: Ends) -> None:
    receiver, peer = ends
    frame, payload = data(bulk.FRAME_BYTES_MAX, 3)
    peer.sendall(said((frame, payload[:1000])))
    receiver.receive_header()
    deadline = time.monotonic() - 1.0
    with pytest.raises(TimeoutError):
        receiver.receive_pieces([memoryview(bytearray(frame.length))], deadline)


def test_a_cut_ends_a_wait_for_a_payload(ends: Ends) -> None:
    receiver, _ = ends
    patient = FrameSocket(receiver.detach(), bulk.FROM_CLIENT, 60.0)
    threading.Timer(0.1, patient.cut).start()
    with pytest.raises(ConnectionResetError):
        patient.receive_pieces([memoryview(bytearray(bulk.FRAME_BYTES_MAX))])


def test_what_was_made_ready_goes_out_as_it_is(ends: Ends) -> None:
    receiver, peer = ends
    sender = FrameSocket(peer, bulk.FROM_SERVICE)
    frame = Frame(Kind.DATA, 1, 4, 0, 3000)
    made = ready(frame, [b"a" * 1000, memoryview(b"b" * 2000)])
    for _ in range(2):
        sender.send_ready(made)
        assert receiver.receive_header() == frame
        assert receiver.receive(3000) == b"a" * 1000 + b"b" * 2000
