"""The audit log as calls meet it: what is recorded, and who waits for it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.principals import EVERY_ROLE, Role
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc
from tests.pki import Pki

REFUSED = "ROLE_NOT_ALLOWED"


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


def audit_lines(service: Any) -> list[dict[str, Any]]:
    path = service.settings.data_directory / "audit" / "000001.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_verify_is_recorded_before_it_starts_and_when_it_ends(
    secure: Any, channels: dict[Role, grpc.Channel]
) -> None:
    before = len(audit_lines(secure))
    stub = cache_pb2_grpc.CacheServiceStub(channels[Role.OPERATOR])
    list(stub.VerifyBlocks(pb.VerifyBlocksRequest(bytes_per_second=1 << 30), timeout=30))
    begun, done = audit_lines(secure)[before:]
    assert (begun["outcome"], done["outcome"]) == ("begun", "done")
    assert begun["roles"] == ["operator"]
    assert begun["method"] == "/kvtier.v1.CacheService/VerifyBlocks"
    assert begun["target"] == f"bytes_per_second={1 << 30}"


def test_a_log_that_cannot_be_written_stops_operators_and_nobody_else(
    make_service: Callable[..., Any], tools: Any
) -> None:
    service = make_service()
    (service.settings.data_directory / "audit").write_text("in the way")
    verify = service.stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=10)
    assert tools.refusal(lambda: list(verify)).reason == "AUDIT_UNAVAILABLE"
    opened = service.stub.OpenSession(tools.open_request("stream"), timeout=10)
    assert opened.session_id
    (service.settings.data_directory / "audit").unlink()
    again = service.stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=30)
    assert list(again)[-1].done, "the log is tried again with the next call"


def test_two_services_do_not_write_one_log(
    make_service: Callable[..., Any], short_directory: Callable[[], Path], tools: Any
) -> None:
    first = make_service(ssd={"enabled": False})
    socket_path = short_directory() / "arena.sock"
    data = first.settings.data_directory
    second = make_service(data, ssd={"enabled": False}, socket_path=socket_path)
    refused = []
    for service in (first, second):
        call = service.stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=10)
        refused.append(tools.refusal(lambda: list(call)))  # noqa: B023
    assert [refusal.reason for refusal in refused] == ["NO_SSD_TIER", "AUDIT_LOCKED"]
    assert "give each service its own data_directory" in refused[1].message
    assert [line["outcome"] for line in audit_lines(first)] == ["begun", "failed"]


def test_refusals_of_operator_calls_are_recorded(
    make_service: Callable[..., Any], pki: Pki, tools: Any
) -> None:
    service = make_service(security=pki.security.model_dump())
    with grpc.secure_channel(service.address, pki.role(Role.BILLER)) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        for _ in range(5):
            call = stub.VerifyBlocks(pb.VerifyBlocksRequest(), timeout=10)
            assert tools.refusal(lambda: list(call)).reason == REFUSED  # noqa: B023
    first, *more = audit_lines(service)
    assert (first["outcome"], first["reason"], first["count"]) == ("refused", REFUSED, 1)
    assert sum(line["count"] for line in [first, *more]) <= 5
