"""Attempts to get at the cache without the right: certificates, roles, other people's ids."""

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from cache_service.edge.services import services
from cache_service.intake import StreamIntake
from cache_service.roles import RULES
from cache_service.servicer import CacheServicer
from kvtier.breaker import Breaker, BreakerState
from kvtier.errors import read_error
from kvtier.keys import pack_hashes, payload_checksum
from kvtier.principals import EVERY_ROLE, Role, role_uri
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc
from tests.pki import Pki, raw_call

METHODS = {
    f"/{service.name}/{method.name}": method
    for service in services(
        cast(Any, None), CacheServicer(cast(Any, None), StreamIntake(), "/nowhere")
    )
    for method in Default().FindServiceByName(service.name).methods
}
REFUSED = ("ROLE_NOT_ALLOWED", grpc.StatusCode.PERMISSION_DENIED)


@pytest.fixture(scope="module")
def pki(short_directory: Callable[[], Path]) -> Pki:
    return Pki(short_directory() / "tls")


@pytest.fixture(scope="module")
def secure(make_service: Callable[..., Any], pki: Pki) -> Any:
    return make_service(security=pki.security.model_dump())


@pytest.fixture(scope="module")
def channels(secure: Any, pki: Pki) -> Iterator[dict[Role, grpc.Channel]]:
    made = {role: grpc.secure_channel(secure.address, pki.role(role)) for role in EVERY_ROLE}
    yield made
    for channel in made.values():
        channel.close()


def outcome(call: Callable[[], Any]) -> tuple[str, grpc.StatusCode | None]:
    try:
        call()
    except grpc.RpcError as error:
        wire = read_error(error)
        return wire.reason, wire.code
    return "", None


# Roles.


def test_every_call_has_a_row_and_every_row_a_call() -> None:
    assert set(RULES) == set(METHODS)


@pytest.mark.parametrize("role", sorted(EVERY_ROLE))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_role_reaches_its_own_calls_and_no_other(
    channels: dict[Role, grpc.Channel], method: str, role: Role
) -> None:
    described = METHODS[method]
    streams = (described.client_streaming, described.server_streaming)
    said = outcome(lambda: raw_call(channels[role], method, streams))
    assert (said == REFUSED) == (role not in RULES[method].roles)
    assert said[0] not in ("UNAUTHENTICATED", "INTERNAL")


@pytest.mark.parametrize("role", sorted(EVERY_ROLE))
def test_everybody_may_ask_for_health(channels: dict[Role, grpc.Channel], role: Role) -> None:
    for method, streams in (("Check", (False, False)), ("Watch", (False, True))):
        assert raw_call(channels[role], f"/grpc.health.v1.Health/{method}", streams)


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("https://operator",),
        ("kvtier://operator/acme",),
        ("kvtier://tenant",),
        ("kvtier://OPERATOR ",),
        ("kvtier://root",),
        ("kvtier:operator",),
        ("kvtier://operator?role=operator",),
        ("kvtier://operator:1",),
        ("kvtier://x@operator",),
    ],
)
def test_a_certificate_without_a_role_of_ours_may_nothing(
    secure: Any, pki: Pki, uris: tuple[str, ...]
) -> None:
    with grpc.secure_channel(secure.address, pki.client(*uris)) as channel:
        for method, described in METHODS.items():
            streams = (described.client_streaming, described.server_streaming)
            assert outcome(lambda: raw_call(channel, method, streams)) == REFUSED  # noqa: B023
        health = "/grpc.health.v1.Health/Check"
        assert outcome(lambda: raw_call(channel, health, (False, False))) == REFUSED


def test_several_roles_add_up(secure: Any, pki: Pki) -> None:
    both = pki.client(role_uri(Role.ENGINE), role_uri(Role.AUDITOR))
    with grpc.secure_channel(secure.address, both) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        stub.GetStats(pb.GetStatsRequest(), timeout=10)
        assert outcome(lambda: stub.CloseSession(pb.CloseSessionRequest())) != REFUSED


# Certificates.


def unreachable(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether no call gets through, not even one for health."""
    channel = (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials)
    )
    with channel:
        said = outcome(lambda: raw_call(channel, "/grpc.health.v1.Health/Check", (False, False)))
    return said == ("", grpc.StatusCode.UNAVAILABLE)


def test_an_expired_certificate_is_refused(secure: Any, pki: Pki) -> None:
    assert unreachable(secure.address, pki.client(role_uri(Role.OPERATOR), days=-1))


def test_a_foreign_authoritys_certificate_is_refused(secure: Any, pki: Pki, tmp_path: Path) -> None:
    foreign = Pki(tmp_path / "foreign")
    forged = foreign.client_file(role_uri(Role.OPERATOR))
    trust = pki.authority.certificate_file
    assert unreachable(secure.address, foreign.credentials(forged, trust))


def test_a_self_signed_certificate_is_refused(secure: Any, pki: Pki, tmp_path: Path) -> None:
    own = Pki(tmp_path / "own").authority.certificate_file
    assert unreachable(secure.address, pki.credentials(own))


def test_no_certificate_and_clear_text_are_refused(secure: Any, pki: Pki) -> None:
    bare = grpc.ssl_channel_credentials(pki.authority.certificate_file.read_bytes())
    assert unreachable(secure.address, bare)
    assert unreachable(secure.address, None)


def test_a_servers_certificate_is_no_clients(secure: Any, pki: Pki) -> None:
    assert unreachable(secure.address, pki.credentials(pki.server_file))


def test_a_client_believes_no_service_of_another_authority(
    secure: Any, pki: Pki, tmp_path: Path
) -> None:
    foreign = Pki(tmp_path / "foreign")
    mine = pki.client_file(role_uri(Role.ENGINE))
    other = pki.credentials(mine, foreign.authority.certificate_file)
    assert unreachable(secure.address, other)


def test_an_engine_cannot_pose_as_the_cache_service(
    make_service: Callable[..., Any], pki: Pki
) -> None:
    stolen = pki.client_file(role_uri(Role.ENGINE))
    security = pki.security.model_dump() | {
        "certificate_file": stolen,
        "key_file": stolen.with_suffix(".key"),
    }
    impostor = make_service(security=security)
    assert unreachable(impostor.address, pki.engine)


# Other people's ids.

SESSION_CALLS = sorted(
    name for name, method in METHODS.items() if "session_id" in method.input_type.fields_by_name
)


@pytest.fixture
def owned(secure: Any, pki: Pki, tools: Any) -> Iterator[dict[str, Any]]:
    """A session of one engine, with a block, a lease on it and a reservation."""
    with grpc.secure_channel(secure.address, pki.engine) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        opened = stub.OpenSession(tools.open_request("stream"), timeout=10)
        chain, waiting = tools.fresh_chain(1), tools.fresh_chain(1)
        page = tools.filled_pages(chain)[0].tobytes()
        ids: dict[str, Any] = {"session_id": opened.session_id}
        stored = stub.ReserveBlocks(
            pb.ReserveBlocksRequest(**ids, block_hashes=pack_hashes(chain)), timeout=10
        )
        frames = [
            pb.StoreBlocksRequest(
                **ids,
                reservation_id=stored.reservation_id,
                offset=at,
                data=page[at : at + (1 << 20)],
            )
            for at in range(0, len(page), 1 << 20)
        ]
        assert stub.StoreBlocks(iter(frames), timeout=10).stored_count == 1
        checksum = payload_checksum(chain[0], page)
        stub.CommitBlocks(
            pb.CommitBlocksRequest(
                **ids, reservation_id=stored.reservation_id, checksums=[checksum]
            ),
            timeout=10,
        )
        acquired = stub.AcquirePrefix(
            pb.AcquirePrefixRequest(**ids, block_hashes=pack_hashes(chain)), timeout=10
        )
        # To its end: a stream that is left early gives its lease back.
        match = list(acquired)[0].match  # noqa: RUF015
        reserved = stub.ReserveBlocks(
            pb.ReserveBlocksRequest(**ids, block_hashes=pack_hashes(waiting)), timeout=10
        )
        yield {
            "stub": stub,
            "session_id": opened.session_id,
            "lease_id": match.lease_id,
            "reservation_id": reserved.reservation_id,
            "block_hashes": pack_hashes(chain),
            "block_count": 1,
        }
        stub.CloseSession(pb.CloseSessionRequest(**ids), timeout=10)


def named(method: str, owned: dict[str, Any]) -> Any:
    kind = GetMessageClass(METHODS[method].input_type)
    return kind(**{k: v for k, v in owned.items() if k in kind.DESCRIPTOR.fields_by_name})


def call_with(channel: grpc.Channel, method: str, request: Any) -> Any:
    described, raw = METHODS[method], request.SerializeToString()
    if described.client_streaming:
        return channel.stream_unary(method)(iter([raw]), timeout=10)
    if described.server_streaming:
        return list(channel.unary_stream(method)(raw, timeout=10))
    return channel.unary_unary(method)(raw, timeout=10)


@pytest.mark.parametrize("method", SESSION_CALLS)
def test_ids_of_another_engines_session_are_unknown(
    secure: Any, pki: Pki, owned: dict[str, Any], method: str
) -> None:
    """Replayed over another certificate's connection they are worth nothing, and harm nothing."""
    with grpc.secure_channel(secure.address, pki.role(Role.ENGINE)) as stranger:
        request = named(method, owned)
        said = outcome(lambda: call_with(stranger, method, request))
        assert said == ("SESSION_UNKNOWN", grpc.StatusCode.NOT_FOUND)
    held = owned["stub"].RenewLeases(
        pb.RenewLeasesRequest(
            session_id=owned["session_id"],
            lease_ids=[owned["lease_id"]],
            reservation_ids=[owned["reservation_id"]],
        ),
        timeout=10,
    )
    assert all(renewal.HasField("expire_time") for renewal in held.renewals)


def test_ids_of_another_session_over_ones_own_session_are_unknown(
    secure: Any, pki: Pki, owned: dict[str, Any], tools: Any
) -> None:
    """The right certificate for the session, and a lease that somebody else holds."""
    with grpc.secure_channel(secure.address, pki.role(Role.ENGINE)) as stranger:
        stub = cache_pb2_grpc.CacheServiceStub(stranger)
        mine = stub.OpenSession(tools.open_request("stream"), timeout=10).session_id
        stolen = owned | {"session_id": mine}
        for method, reason in (
            ("LoadBlocks", "LEASE_UNKNOWN"),
            ("CommitBlocks", "RESERVATION_UNKNOWN"),
        ):
            name = f"/kvtier.v1.CacheService/{method}"
            assert outcome(lambda: call_with(stranger, name, named(name, stolen)))[0] == reason  # noqa: B023
        stub.CloseSession(pb.CloseSessionRequest(session_id=mine), timeout=10)


def test_the_same_key_over_another_connection_is_the_same_caller(
    secure: Any, pki: Pki, owned: dict[str, Any]
) -> None:
    with grpc.secure_channel(
        secure.address, pki.engine, options=(("grpc.use_local_subchannel_pool", 1),)
    ) as again:
        request = named("/kvtier.v1.CacheService/LookupPrefix", owned)
        assert cache_pb2_grpc.CacheServiceStub(again).LookupPrefix(request, timeout=10)


def test_a_ticket_works_once_whoever_replays_it(secure: Any, pki: Pki, tools: Any) -> None:
    with grpc.secure_channel(secure.address, pki.engine) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        opened = stub.OpenSession(tools.open_request("shared_memory"), timeout=10)
        assert present(opened.arena) == b"\x00"
        assert present(opened.arena) == b"\x01"
        closed = stub.OpenSession(tools.open_request("shared_memory"), timeout=10)
        stub.CloseSession(pb.CloseSessionRequest(session_id=closed.session_id), timeout=10)
        assert present(closed.arena) == b"\x01"


def present(arena: Any) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(arena.socket_path)
        connection.sendall(arena.ticket)
        answer, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        assert bool(descriptors) == (answer == b"\x00")
        return answer


# The worker's client, the command line.


@pytest.mark.parametrize("transport", ["shared_memory", "bulk", "stream"])
def test_the_workers_client_stores_and_restores_over_tls(
    secure: Any, pki: Pki, make_client: Callable[..., Any], tools: Any, transport: str
) -> None:
    chain = tools.fresh_chain(3)
    engine = pki.client_file(role_uri(Role.ENGINE))
    secured = {"credentials": pki.credentials(engine), "lane_tls": pki.lane_tls(engine)}
    client = make_client(secure.address, transport, **secured)
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 3
    pages = tools.empty_pages(3)
    assert len(client.restore("r", chain, pages, 10.0).tiers) == 3
    wanted = tools.filled_pages(chain)
    assert all((page == want).all() for page, want in zip(pages, wanted, strict=True))


def test_a_client_that_may_not_restores_nothing_and_does_not_fail(
    secure: Any, pki: Pki, make_client: Callable[..., Any], tools: Any
) -> None:
    chain = tools.fresh_chain(1)
    breaker = Breaker(time.monotonic)
    client = make_client(secure.address, credentials=pki.role(Role.AUDITOR), breaker=breaker)
    for _ in range(10):
        assert client.restore("r", chain, tools.empty_pages(1), 5.0).tiers == ()
    assert breaker.state is not BreakerState.CLOSED, "it is not asked again for every request"


def test_the_command_line_shows_who_asks(secure: Any, pki: Pki) -> None:
    def kvtier(role: Role, *arguments: str) -> "subprocess.CompletedProcess[str]":
        certificate = pki.client_file(role_uri(role, ("acme",) if role is Role.TENANT else ()))
        command = [sys.executable, "-m", "kvtier.cli.main"]
        command += ["--ca", str(pki.authority.certificate_file)]
        command += ["--certificate", str(certificate)]
        command += ["--key", str(certificate.with_suffix(".key")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    allowed = kvtier(Role.AUDITOR, "cache", "stats", "--json", "--address", secure.address)
    assert allowed.returncode == 0, allowed.stderr
    assert "tiers" in json.loads(allowed.stdout)
    refused = kvtier(Role.TENANT, "cache", "stats", "--address", secure.address)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "ROLE_NOT_ALLOWED" in refused.stderr


# In clear.


def test_a_unix_socket_is_its_owners_who_is_engine_and_operator(
    make_service: Callable[..., Any], pki: Pki, short_directory: Callable[[], Path], tools: Any
) -> None:
    path = short_directory() / "c.sock"
    service = make_service(
        listen="",
        unix_socket=str(path),
        security={"development": False},
        bulk={"listen": ""},
    )
    assert service.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    opened = service.stub.OpenSession(tools.open_request("stream"), timeout=10)
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=opened.session_id), timeout=10)
    assert list(service.stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=30))[-1].done


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["listen=127.0.0.1:0"], "security.development"),
        (["listen=0.0.0.0:0"], "client_ca_file"),
        (["listen=0.0.0.0:0", "security.development=true"], "Unix socket"),
        (["listen=[::]:0", "security.development=true"], "Unix socket"),
    ],
)
@pytest.mark.parametrize("room", ["cache_service", "billing", "worker"])
def test_a_service_starts_in_clear_on_loopback_in_development_only(
    tmp_path: Path, room: str, settings: list[str], word: str
) -> None:
    all_settings = [*settings, f"data_directory={tmp_path / room}"]
    if room == "worker":
        all_settings.append(f"model={tmp_path}")
    flags = [part for setting in all_settings for part in ("--set", setting)]
    ended = subprocess.run(
        [sys.executable, "-m", room, *flags], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "TLS_REQUIRED" in ended.stderr
    assert word in ended.stderr
    assert not (tmp_path / room).exists()
