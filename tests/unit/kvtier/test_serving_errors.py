"""What a client sees of a failing handler, over a real server."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvtier.access import Access, Rule, rules
from kvtier.errors import KvtierError, read_error
from kvtier.listening import AddressInUseError
from kvtier.principals import EVERY_ROLE
from kvtier.serving import GrpcServer
from kvtier.tls import SecuritySettings
from kvtier.v1 import usage_pb2, usage_pb2_grpc

SERVICE = "kvtier.v1.UsageService"
ACCESS = Access(
    rules(SERVICE, **dict.fromkeys(("GetUsage", "GetInvoice", "VerifyLedger"), Rule(EVERY_ROLE))),
    SecuritySettings(development=True),
)


class TeapotError(KvtierError):
    reason = "TEAPOT"


class SmallTeapotError(TeapotError):
    reason = "SMALL_TEAPOT"


class UnlistedError(KvtierError):
    reason = "UNLISTED"


class Failing(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self) -> None:
        self.error: Exception = TeapotError("x")

    async def GetUsage(self, request: Any, context: Any) -> Any:
        raise self.error


@pytest.fixture
async def failing() -> AsyncIterator[tuple[Failing, str]]:
    server = GrpcServer({TeapotError: grpc.StatusCode.FAILED_PRECONDITION}, ACCESS)
    servicer = Failing()
    usage_pb2_grpc.add_UsageServiceServicer_to_server(servicer, server.server)
    (address,) = await server.start(["127.0.0.1:0"], [SERVICE])
    yield servicer, address
    await server.drain(0)


async def fail(address: str) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.GetUsage(usage_pb2.GetUsageRequest())
    return read_error(caught.value)


async def test_listed_error_has_its_code_reason_and_metadata(failing: Any) -> None:
    servicer, address = failing
    servicer.error = TeapotError("short and stout", spout=1)
    wire = await fail(address)
    assert wire.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (wire.reason, wire.message, wire.metadata) == (
        "TEAPOT",
        "short and stout",
        {"spout": "1"},
    )


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600", "\n", "\udcff"])
async def test_an_error_that_quotes_a_huge_request_arrives_whole_enough(
    failing: Any, character: str
) -> None:
    """Statuses travel as headers, which gRPC bounds: a longer one would arrive without a reason."""
    servicer, address = failing
    quoted = character * 1_000_000
    servicer.error = TeapotError(f"no such tenant: {quoted}", **{f"m{i}": quoted for i in range(3)})
    wire = await fail(address)
    assert wire.code is grpc.StatusCode.FAILED_PRECONDITION
    assert wire.reason == "TEAPOT"
    assert wire.message.startswith("no such tenant: ")
    assert wire.message.endswith("...")
    assert set(wire.metadata) == {"m0", "m1", "m2"}


async def test_subclass_inherits_the_code_and_keeps_its_reason(failing: Any) -> None:
    servicer, address = failing
    servicer.error = SmallTeapotError("x")
    wire = await fail(address)
    assert (wire.code, wire.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SMALL_TEAPOT")


@pytest.mark.parametrize("error", [RuntimeError("secret detail"), KeyError("k")])
async def test_unexpected_error_is_internal_and_tells_nothing(
    failing: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    servicer, address = failing
    servicer.error = error
    wire = await fail(address)
    assert (wire.code, wire.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in wire.message
    assert "unexpected failure" in caplog.text


async def test_unlisted_error_is_internal_with_its_reason(failing: Any) -> None:
    servicer, address = failing
    servicer.error = UnlistedError("x")
    wire = await fail(address)
    assert (wire.code, wire.reason) == (grpc.StatusCode.INTERNAL, "UNLISTED")


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"])
async def test_bytes_that_do_not_parse_are_a_typed_refusal(failing: Any, raw: bytes) -> None:
    """The second case is a well-formed message whose text field is not UTF-8."""
    _, address = failing
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetUsage")
        with pytest.raises(grpc.RpcError) as caught:
            await call(raw)
    wire = read_error(caught.value)
    assert (wire.code, wire.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_health_answers_for_the_service_by_name(failing: Any) -> None:
    _, address = failing
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_port_in_use_is_a_typed_error(failing: Any) -> None:
    _, address = failing
    second = GrpcServer({}, ACCESS)
    with pytest.raises(AddressInUseError) as caught:
        await second.start([address], [SERVICE])
    assert address in str(caught.value)
    await second.drain(0)
