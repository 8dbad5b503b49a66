"""Whatever a client sends, it gets an answer or a typed refusal, and the service loses nothing.

Messages are those of `tests/messages.py`; bytes that are no message at all go the same way.
"""

import random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kvtier.errors import read_error
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc, control_pb2_grpc, explain_pb2_grpc
from tests.messages import BLOCK_BYTES, EVERY_ONE, LOOKING, STEERING, Fuzzer

STUBS = {
    "CacheService": cache_pb2_grpc.CacheServiceStub,
    "ExplainService": explain_pb2_grpc.ExplainServiceStub,
    "ControlService": control_pb2_grpc.ControlServiceStub,
}
CALL_SECONDS_MAX = 20
CALLS = 2500

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.OUT_OF_RANGE,
}


def answers(service: Any, method: MethodDescriptor, requests: list[Message]) -> list[Message]:
    """None for a typed refusal; anything else that is no answer fails."""
    stub = STUBS[method.containing_service.name](service.channel)
    rpc = getattr(stub, method.name)
    asked = iter(requests) if method.client_streaming else requests[0]
    try:
        if method.server_streaming:
            return list(rpc(asked, timeout=CALL_SECONDS_MAX))
        return [rpc(asked, timeout=CALL_SECONDS_MAX)]
    except grpc.RpcError as raised:
        check_refusal(method, raised)
        return []


def check_refusal(method: MethodDescriptor, raised: grpc.RpcError) -> None:
    error = read_error(raised)
    assert error.code in REFUSALS, (method.name, error)
    assert error.reason, (method.name, error)


def nothing_is_held(stats: pb.GetStatsResponse) -> bool:
    """Every slab in use is a cached block's."""
    used = sum(each.used_count for each in stats.host_memory.classes)
    held = stats.lease_count + stats.reservation_count + stats.pending_write_count
    return held == 0 and used == stats.tiers[0].block_count


@pytest.fixture(scope="module")
def small_service(make_service: Any) -> Any:
    return make_service(
        host={"capacity_bytes": 400 * BLOCK_BYTES},
        ssd={"capacity_bytes": "1MiB", "segment_bytes": "128KiB"},
        limits={"reservation_grace_seconds": 0.05},
    )


@pytest.mark.parametrize("seed", range(4))
def test_any_messages_in_any_order(small_service: Any, tools: Any, seed: int) -> None:
    fuzzer, looker = (Fuzzer(random.Random(seed), tools.fresh_chain) for _ in range(2))
    stub = small_service.stub
    before = dict(small_service.stats().counters)
    for number in range(CALLS):
        if number % 40 == 0:
            request = tools.open_request(
                fuzzer.rng.choice(["stream", "shared_memory"]), block_bytes=BLOCK_BYTES
            )
            fuzzer.take(stub.OpenSession(request, timeout=10))
        method = fuzzer.method()
        count = fuzzer.rng.randint(1, 4) if method.client_streaming else 1
        requests = [fuzzer.message(method.input_type) for _ in range(count)]
        for answer in answers(small_service, method, requests):
            fuzzer.take(answer)
        if number % 10 == 0:
            looker.ids = fuzzer.ids
            method = looker.rng.choice(LOOKING)
            answers(small_service, method, [looker.message(method.input_type)])
        if number % 50 == 0:
            method = looker.rng.choice(STEERING)
            answers(small_service, method, [looker.message(method.input_type)])
    for session_id in fuzzer.ids["session_id"]:
        stub.CloseSession(pb.CloseSessionRequest(session_id=session_id), timeout=10)
    after = small_service.until(nothing_is_held).counters
    for what in ("blocks_committed", "blocks_ready", "acquires"):
        assert after[what] > before.get(what, 0), "nothing got far: the test tests nothing"


@pytest.mark.parametrize("method", EVERY_ONE, ids=lambda method: str(method.name))
def test_bytes_that_are_no_message_are_refused(
    small_service: Any, method: MethodDescriptor
) -> None:
    path, channel = f"/{method.containing_service.full_name}/{method.name}", small_service.channel
    rng = random.Random(str(method.name))
    for size in (0, 1, 2, 3, 10, 50, 500):
        raw = rng.randbytes(size)
        try:
            if method.client_streaming:
                channel.stream_unary(path)(iter([raw, raw]), timeout=CALL_SECONDS_MAX)
            elif method.server_streaming:
                list(channel.unary_stream(path)(raw, timeout=CALL_SECONDS_MAX))
            else:
                channel.unary_unary(path)(raw, timeout=CALL_SECONDS_MAX)
        except grpc.RpcError as raised:
            check_refusal(method, raised)
