"""The bulk lane under TLS: a ticket is for the key that asked."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier import bulk
from kvtier.bulk import Frame, Kind, StopReason
from kvtier.bulk_socket import FrameSocket
from kvtier.principals import Role, role_uri
from kvtier.v1 import bulk_pb2, bulk_pb2_grpc
from tests.pki import Pki
from worker.bulk_lane import BulkLanes, LaneStoppedError

# TLS.


@pytest.fixture(scope="module")
def pki(short_directory: Callable[[], Path]) -> Pki:
    return Pki(short_directory() / "tls")


@pytest.fixture(scope="module")
def secure(make_service: Any, pki: Pki) -> Any:
    return make_service(security=pki.security.model_dump(), ssd={"enabled": False})


def secured_ticket(secure: Any, pki: Pki, file: Path, tools: Any) -> bytes:
    import grpc

    from kvtier.v1 import cache_pb2_grpc

    with grpc.secure_channel(secure.address, pki.credentials(file)) as channel:
        opened = cache_pb2_grpc.CacheServiceStub(channel).OpenSession(
            tools.open_request("bulk"), timeout=10
        )
        given = bulk_pb2_grpc.BulkServiceStub(channel).OpenBulkLane(
            bulk_pb2.OpenBulkLaneRequest(session_id=opened.session_id), timeout=10
        )
        assert given.tls
        assert not given.takes_calls
        return given.ticket


def greeted(secure: Any, context: Any, ticket: bytes, *more: Frame) -> Frame:
    """The last answer: to the ticket, or to the last of `more`."""
    host, _, port = secure.server.bulk_listen.rpartition(":")
    raw = socket.create_connection((host, int(port)), 10)
    with context.wrap_socket(raw, server_hostname=host) as connection:
        frames = FrameSocket(connection, bulk.FROM_SERVICE)
        frames.send(Frame(Kind.HELLO, length=32), ticket)
        answer = frames.receive_header(time.monotonic() + 10)
        for frame in more:
            frames.send(frame)
            answer = frames.receive_header(time.monotonic() + 10)
        return answer


def test_over_tls_a_ticket_is_for_the_key_that_asked(secure: Any, pki: Pki, tools: Any) -> None:
    mine, theirs = (pki.client_file(role_uri(Role.ENGINE)) for _ in range(2))
    ticket = secured_ticket(secure, pki, mine, tools)
    stolen = greeted(secure, pki.lane_tls(theirs), ticket)
    assert (stolen.kind, stolen.index) == (Kind.STOP, StopReason.TICKET_REFUSED)
    own = greeted(secure, pki.lane_tls(mine), secured_ticket(secure, pki, mine, tools))
    assert own.kind is Kind.WELCOME


def test_over_tls_a_connection_carries_no_calls(secure: Any, pki: Pki, tools: Any) -> None:
    mine = pki.client_file(role_uri(Role.ENGINE))
    ticket = secured_ticket(secure, pki, mine, tools)
    stopped = greeted(secure, pki.lane_tls(mine), ticket, Frame(Kind.CALLS))
    assert (stopped.kind, stopped.index) == (Kind.STOP, StopReason.MALFORMED_FRAME)


def test_over_tls_nobody_gets_in_without_a_certificate_of_the_authority(
    secure: Any, pki: Pki, tools: Any, short_directory: Any
) -> None:
    import ssl

    mine = pki.client_file(role_uri(Role.ENGINE))
    ticket = secured_ticket(secure, pki, mine, tools)
    bare = ssl.create_default_context(cafile=str(pki.authority.certificate_file))
    stranger = Pki(short_directory() / "foreign")
    foreign = stranger.lane_tls(stranger.client_file(role_uri(Role.ENGINE)))
    foreign.load_verify_locations(cafile=str(pki.authority.certificate_file))
    for context in (bare, foreign):
        with pytest.raises(OSError):
            greeted(secure, context, ticket)
    host, _, port = secure.server.bulk_listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as clear:
        clear.sendall(bulk.pack(Frame(Kind.HELLO, length=32)) + ticket)
        try:
            said = clear.recv(4096)
        except ConnectionResetError:
            said = b""
        assert bulk.pack(Frame(Kind.WELCOME)) not in said


def test_a_client_with_tls_takes_no_lane_in_clear(tools: Any) -> None:
    told = bulk_pb2.OpenBulkLaneResponse(port=1, ticket=bytes(32), tls=False)
    lanes = BulkLanes(lambda _: told, "127.0.0.1", None, True)
    with pytest.raises(LaneStoppedError, match="TLS_REQUIRED"):
        lanes.connect(time.monotonic() + 5)
