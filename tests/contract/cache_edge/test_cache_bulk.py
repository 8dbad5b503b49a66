"""The bulk lane under attack and under accidents: typed refusals, and nothing left held."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvtier import bulk
from kvtier.bulk import Frame, Kind, StopReason
from kvtier.bulk_socket import FrameSocket
from kvtier.v1 import bulk_pb2, bulk_pb2_grpc
from kvtier.v1 import cache_pb2 as pb
from worker.transfer import page_checksum

BLOCK_BYTES = 1024 * 1024 + 4000


@pytest.fixture
def peer(service: Any, open_peer: Any) -> Any:
    return open_peer(service, "bulk")


def ticket_of(service: Any, session_id: str) -> bulk_pb2.OpenBulkLaneResponse:
    stub = bulk_pb2_grpc.BulkServiceStub(service.channel)
    return stub.OpenBulkLane(bulk_pb2.OpenBulkLaneRequest(session_id=session_id), timeout=10)


class Attacker:
    """A connection spoken to frame by frame."""

    def __init__(self, service: Any) -> None:
        host, _, port = service.server.bulk_listen.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), 10)
        self.frames = FrameSocket(self.socket, bulk.FROM_SERVICE)
        self.service = service

    def greet(self, session_id: str) -> "Attacker":
        ticket = ticket_of(self.service, session_id).ticket
        self.frames.send(Frame(Kind.HELLO, length=32), ticket)
        assert self.answer().kind is Kind.WELCOME
        return self

    def answer(self) -> Frame:
        return self.frames.receive_header(time.monotonic() + 10)

    def stopped(self) -> StopReason:
        frame = self.answer()
        assert frame.kind is Kind.STOP
        return StopReason(frame.index)

    def at_end(self) -> bool:
        """Whether the service closes the connection, soon."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def load(self, lease_id: str, first: int, count: int, call: int = 1) -> None:
        payload = bulk.pack_load(bulk.raw_id(lease_id), count)
        self.frames.send(Frame(Kind.LOAD, call, first, length=len(payload)), payload)

    def store(self, reservation_id: str, call: int = 1) -> None:
        self.frames.send(Frame(Kind.STORE, call, length=16), bulk.raw_id(reservation_id))


@pytest.fixture
def attack(service: Any) -> Iterator[Callable[[], Attacker]]:
    made: list[Attacker] = []

    def make(of: Any = service) -> Attacker:
        made.append(Attacker(of))
        return made[-1]

    yield make
    for attacker in made:
        attacker.frames.close()


@pytest.fixture(autouse=True)
def nothing_is_left(service: Any) -> Iterator[None]:
    """After every test: no transfer, no pin, no lane thread but idle ones of open sessions."""
    yield
    cache_bulk = service.bulk_side()
    until = time.monotonic() + 10
    while cache_bulk.transfer_count and time.monotonic() < until:
        time.sleep(0.01)
    assert cache_bulk.transfer_count == 0
    service.check_integrity()


# Tickets.


def test_a_replayed_ticket_is_refused(service: Any, peer: Any, attack: Any) -> None:
    ticket = ticket_of(service, peer.id).ticket
    first, second = attack(), attack()
    for attacker in (first, second):
        attacker.frames.send(Frame(Kind.HELLO, length=32), ticket)
    answers = {first.answer().kind, second.answer().kind}
    assert answers == {Kind.WELCOME, Kind.STOP}


def test_guessed_tickets_are_refused(attack: Any) -> None:
    for ticket in (bytes(32), os.urandom(32)):
        attacker = attack()
        attacker.frames.send(Frame(Kind.HELLO, length=32), ticket)
        assert attacker.stopped() is StopReason.TICKET_REFUSED
        assert attacker.at_end()


def test_a_ticket_of_a_closed_session_is_refused(service: Any, open_peer: Any, attack: Any) -> None:
    peer = open_peer(service, "bulk")
    ticket = ticket_of(service, peer.id).ticket
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=peer.id), timeout=5)
    attacker = attack()
    attacker.frames.send(Frame(Kind.HELLO, length=32), ticket)
    assert attacker.stopped() is StopReason.TICKET_REFUSED


def test_tickets_are_for_bulk_sessions_and_so_many(
    service: Any, open_peer: Any, tools: Any
) -> None:
    stream = open_peer(service, "stream")
    error = tools.refusal(lambda: ticket_of(service, stream.id))
    assert error.reason == "INVALID_TRANSPORT"
    assert tools.refusal(lambda: ticket_of(service, "nobody")).reason == "SESSION_UNKNOWN"
    peer = open_peer(service, "bulk")
    for _ in range(8):
        ticket_of(service, peer.id)
    assert tools.refusal(lambda: ticket_of(service, peer.id)).reason == "TOO_MANY_LANES"


# Ids of others.


def test_foreign_leases_and_reservations_are_unknown(
    service: Any, peer: Any, open_peer: Any, attack: Any, tools: Any
) -> None:
    other = open_peer(service, "bulk")
    chain = tools.fresh_chain(2)
    other.store(chain)
    lease_id = other.acquire(chain)[0].match.lease_id
    reserved = other.reserve(tools.fresh_chain(1))
    attacker = attack().greet(peer.id)
    attacker.load(lease_id, 0, 1, call=1)
    assert attacker.stopped() is StopReason.LEASE_UNKNOWN
    attacker.store(reserved.reservation_id, call=2)
    assert attacker.stopped() is StopReason.RESERVATION_UNKNOWN
    other.release(lease_id)


def test_ranges_outside_the_lease_are_refused_and_the_lane_goes_on(
    peer: Any, attack: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(2)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    attacker = attack().greet(peer.id)
    for call, (first, count) in enumerate(((0, 0), (0, 3), (2, 1), (2**32 - 1, 2**32 - 1)), 1):
        attacker.load(lease_id, first, count, call)
        assert attacker.stopped() is StopReason.INVALID_RANGE
    attacker.load(lease_id, 1, 1, 9)
    frame = attacker.answer()
    assert (frame.kind, frame.call, frame.index, frame.offset) == (Kind.DATA, 9, 1, 0)
    peer.release(lease_id)


# Garbage.


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(32),
        bytes(32),
        b"\xff" * 4096,
        bulk.pack(Frame(Kind.WELCOME)),
        bulk.pack(Frame(Kind.STORE, 1, length=16)) + bytes(16),
        bulk.pack(Frame(Kind.DATA, 1, 0, 0, 1 << 40)),
        bulk.pack(Frame(Kind.HELLO, length=2**63)),
    ],
)
def test_garbage_is_refused(attack: Any, said: bytes) -> None:
    attacker = attack()
    attacker.socket.sendall(said)
    assert attacker.stopped() is StopReason.MALFORMED_FRAME
    assert attacker.at_end()


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.HELLO, length=32),
        Frame(Kind.DATA, 1, 0, 0, 10),
        Frame(Kind.GO, 1),
        Frame(Kind.LOAD, 1, 0, 0, 21),
        Frame(Kind.STORE, 1, 0, 0, 1 << 30),
    ],
)
def test_frames_that_do_not_belong_there_end_the_connection(
    peer: Any, attack: Any, frame: Frame
) -> None:
    attacker = attack().greet(peer.id)
    attacker.frames.send(frame)
    assert attacker.stopped() is StopReason.MALFORMED_FRAME
    assert attacker.at_end()


@pytest.mark.parametrize(
    ("index", "offset", "length"),
    [(0, 0, (1 << 20) + 1), (0, 1, 10), (1, 0, 10), (7, 0, 10), (0, 2**63, 10)],
)
def test_data_that_does_not_fit_its_store_ends_the_connection(
    peer: Any, attack: Any, tools: Any, index: int, offset: int, length: int
) -> None:
    reserved = peer.reserve(tools.fresh_chain(2))
    attacker = attack().greet(peer.id)
    attacker.store(reserved.reservation_id)
    assert attacker.answer().kind is Kind.GO
    attacker.frames.send(Frame(Kind.DATA, 1, index, offset, length))
    assert attacker.stopped() is StopReason.MALFORMED_FRAME
    assert attacker.at_end()
    assert tools.refusal(lambda: peer.commit(reserved, [0, 0])).reason == "RESERVATION_INCOMPLETE"


def test_data_past_a_blocks_end_ends_the_connection(peer: Any, attack: Any, tools: Any) -> None:
    reserved = peer.reserve(tools.fresh_chain(1))
    attacker = attack().greet(peer.id)
    attacker.store(reserved.reservation_id)
    assert attacker.answer().kind is Kind.GO
    attacker.frames.send(Frame(Kind.DATA, 1, 0, 0, 1 << 20), bytes(1 << 20))
    attacker.frames.send(Frame(Kind.DATA, 1, 0, 1 << 20, 4001), bytes(4001))
    assert attacker.stopped() is StopReason.MALFORMED_FRAME


def test_other_bytes_than_the_checksum_says_reach_no_page(
    service: Any, peer: Any, make_client: Any, tools: Any
) -> None:
    """The lane does not hash: like bytes in shared memory they are checked by who reads them."""
    chain = tools.fresh_chain(3)
    pages = tools.filled_pages(chain)
    wrong = [pages[0], pages[1] ^ 1, pages[2]]
    reserved = peer.reserve(chain)
    peer.write(reserved, chain, wrong)
    right_sums = [page_checksum(*of) for of in zip(chain, pages, strict=True)]
    assert peer.commit(reserved, right_sums) == 3
    client = make_client(service.address, "bulk")
    targets = tools.empty_pages(3)
    assert len(client.restore("r", chain, targets, 10.0).tiers) == 1
    assert (targets[0] == pages[0]).all()
    assert client.counts()["corrupt_blocks"] == 1
    service.until(lambda _: peer.lookup(chain).present_count == 1)


def test_other_bytes_than_the_checksum_says_do_not_come_back_from_the_disk(
    make_service: Any, open_peer: Any, make_client: Any, tools: Any
) -> None:
    before = make_service()
    peer = open_peer(before, "bulk")
    chain = tools.fresh_chain(3)
    pages = tools.filled_pages(chain)
    reserved = peer.reserve(chain)
    peer.write(reserved, chain, [pages[0], pages[1] ^ 1, pages[2]])
    right_sums = [page_checksum(*of) for of in zip(chain, pages, strict=True)]
    assert peer.commit(reserved, right_sums) == 3
    before.until(lambda stats: stats.tiers[1].block_count == 3)
    before.end()
    peer.connection = socket.socket()  # nothing to close at a service that is gone
    after = make_service(before.settings.data_directory)
    client = make_client(after.address, "bulk")
    targets = tools.empty_pages(3)
    assert len(client.restore("r", chain, targets, 10.0).tiers) == 1
    assert (targets[0] == pages[0]).all()
    assert not (targets[1] == pages[1] ^ 1).all()
    looker = open_peer(after, "bulk")
    after.until(lambda _: looker.lookup(chain).present_count == 1)


# Connections that break, sessions that end.


@pytest.mark.parametrize("sent", [0, 1, 100, 1 << 20, BLOCK_BYTES - 1, BLOCK_BYTES + 5])
def test_a_store_goes_on_where_its_connection_broke(
    peer: Any, attack: Any, tools: Any, sent: int
) -> None:
    chain = tools.fresh_chain(3)
    pages = tools.filled_pages(chain)
    reserved = peer.reserve(chain)
    attacker = attack().greet(peer.id)
    attacker.store(reserved.reservation_id)
    assert attacker.answer().index == 0
    stream = b""
    for index, page in enumerate(pages):
        for offset in range(0, len(page), 1 << 20):
            piece = page[offset : offset + (1 << 20)].tobytes()
            stream += bulk.pack(Frame(Kind.DATA, 1, index, offset, len(piece))) + piece
    attacker.socket.sendall(stream[:sent])
    attacker.frames.close()
    assert peer.commit(reserved, peer.write(reserved, chain)) == 3
    events = peer.acquire(chain)
    assert peer.read(events) == [page.tobytes() for page in pages]
    peer.release(events[0].match.lease_id)


def test_a_load_whose_reader_goes_away_holds_nothing(
    service: Any, peer: Any, attack: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(16)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    attacker = attack().greet(peer.id)
    attacker.load(lease_id, 0, 16)
    assert attacker.answer().kind is Kind.DATA
    attacker.frames.close()
    peer.release(lease_id)


def test_a_reader_that_stalls_is_cut_when_its_session_ends(
    service: Any, open_peer: Any, attack: Any, tools: Any
) -> None:
    peer = open_peer(service, "bulk")
    chain = tools.fresh_chain(24)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    attacker = attack().greet(peer.id)
    attacker.load(lease_id, 0, 24)
    assert attacker.answer().kind is Kind.DATA
    assert service.bulk_side().transfer_count == 1
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=peer.id), timeout=5)
    # `nothing_is_left` waits for the thread to give its blocks back, while nobody reads.
    until = time.monotonic() + 5
    while service.bulk_side().transfer_count and time.monotonic() < until:
        time.sleep(0.01)
    assert service.bulk_side().transfer_count == 0
    assert attacker.at_end()


def test_a_store_whose_session_ends_under_way_keeps_nothing(
    service: Any, open_peer: Any, attack: Any, tools: Any
) -> None:
    peer = open_peer(service, "bulk")
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    attacker = attack().greet(peer.id)
    attacker.store(reserved.reservation_id)
    assert attacker.answer().kind is Kind.GO
    attacker.frames.send(Frame(Kind.DATA, 1, 0, 0, 1 << 20), bytes(1 << 20))
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=peer.id), timeout=5)
    assert attacker.at_end()


def test_an_expired_lease_stops_a_load_and_the_lane_goes_on(
    service: Any, peer: Any, attack: Any, tools: Any
) -> None:
    chain = tools.fresh_chain(24)
    peer.store(chain)
    wanted = b"".join(page.tobytes() for page in tools.filled_pages(chain))
    lease_id = peer.acquire(chain)[0].match.lease_id
    attacker = attack().greet(peer.id)
    attacker.load(lease_id, 0, 24)
    frame = attacker.answer()
    peer.release(lease_id)
    while frame.kind is Kind.DATA:
        piece = attacker.frames.receive(frame.length)
        start = frame.index * BLOCK_BYTES + frame.offset
        assert piece == wanted[start : start + frame.length]
        if start + frame.length == len(wanted):
            return  # all of it was in the socket's buffers before the loop looked
        frame = attacker.answer()
    assert StopReason(frame.index) is StopReason.LEASE_UNKNOWN


def test_more_connections_than_the_setting_are_told_so(
    make_service: Any, open_peer: Any, attack: Any
) -> None:
    small = make_service(
        bulk={"listen": "127.0.0.1:0", "connections_max": 2}, ssd={"enabled": False}
    )
    peer = open_peer(small, "bulk")
    held = [attack(small).greet(peer.id) for _ in range(2)]
    late = attack(small)
    assert late.stopped() is StopReason.TOO_MANY_LANES
    assert late.at_end()
    held[0].frames.close()
    small.until(lambda _: small.bulk_side().lane_count < 2)
    attack(small).greet(peer.id)


def test_a_stop_ends_connections_and_threads(
    make_service: Any, open_peer: Any, attack: Any
) -> None:
    before = set(threading.enumerate())
    ending = make_service(ssd={"enabled": False})
    peer = open_peer(ending, "bulk")
    attackers = [attack(ending).greet(peer.id), attack(ending)]
    started = [t for t in set(threading.enumerate()) - before if t.name.startswith("bulk-")]
    assert {t.name for t in started} == {"bulk-accept", "bulk-lane"}
    ending.end()
    assert all(attacker.at_end() for attacker in attackers)
    assert not any(thread.is_alive() for thread in started)
    peer.connection = socket.socket()  # nothing to close at a service that is gone


def test_a_client_whose_connections_are_cut_again_and_again_loses_nothing(
    make_service: Any, make_client: Any, tools: Any, cutting_proxy: Any
) -> None:
    """Every connection breaks after some bytes; each call goes on with another."""
    behind = make_service(ssd={"enabled": False})
    behind.settings.arena_socket_path.rename(behind.settings.arena_socket_path.with_suffix(".x"))
    port = cutting_proxy(behind.server.bulk_listen, [5 << 20, 9 << 20, 1 << 62])
    place = behind.bulk_side().place
    behind.bulk_side().place = type(place)("127.0.0.1", port, False)
    chain = tools.fresh_chain(12)
    client = make_client(behind.address, "bulk")
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 12
    pages = tools.empty_pages(12)
    assert len(client.restore("r", chain, pages, 10.0).tiers) == 12
    wanted = tools.filled_pages(chain)
    assert all((page == want).all() for page, want in zip(pages, wanted, strict=True))
