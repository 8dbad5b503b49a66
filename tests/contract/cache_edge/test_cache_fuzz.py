"""Whatever a client sends, it gets an answer or a typed refusal, and the service loses nothing.

Messages are made from the descriptors, so that a new RPC or field is fuzzed without being named
here. Ids come often from what the service said before, other fields from what makes sense: only
that gets past the first checks. Bytes that are no message at all go the same way.
"""

import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.errors import read_error
from kvtier.keys import KEY_SCHEME_VERSION, pack_hashes
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import (
    cache_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    explain_pb2,
    explain_pb2_grpc,
)

BLOCK_BYTES = 8192
SERVICE = pb.DESCRIPTOR.services_by_name["CacheService"]
METHODS = sorted(SERVICE.methods, key=lambda method: str(method.name))
LOOKING = list(explain_pb2.DESCRIPTOR.services_by_name["ExplainService"].methods)
"""Calls that change nothing: made in between, they leave the lives of the others as they are."""
STEERING = list(control_pb2.DESCRIPTOR.services_by_name["ControlService"].methods)
"""Calls of operators, seldom enough that blocks live for a while."""
EVERY_ONE = METHODS + LOOKING + STEERING
STUBS = {
    "CacheService": cache_pb2_grpc.CacheServiceStub,
    "ExplainService": explain_pb2_grpc.ExplainServiceStub,
    "ControlService": control_pb2_grpc.ControlServiceStub,
}
SELDOM = {"OpenSession", "CloseSession", "VerifyBlocks", "GetStats"}
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

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Fuzzer:
    """Makes messages; remembers what the service said."""

    def __init__(self, seed: int, tools: Any) -> None:
        self.rng = random.Random(seed)
        self.ids: dict[str, list[str]] = {"session_id": [], "lease_id": [], "reservation_id": []}
        self._missing = {"": 1}
        """Reservation -> blocks to store."""
        self._named = ""
        """The reservation named last."""
        self._fresh_chain = tools.fresh_chain
        self._chain = tools.fresh_chain(6)
        # Shorter than a block is unusual, longer than one nonsense.
        self._sound: dict[str, Callable[[], Any]] = {
            "key_scheme_version": lambda: KEY_SCHEME_VERSION,
            "namespace_id": lambda: bytes(range(32)),
            "block_bytes": lambda: BLOCK_BYTES,
            "block_tokens": lambda: 64,
            "index": lambda: self.rng.randrange(3),
            "first_index": lambda: self.rng.randrange(2),
            "block_count": lambda: self.rng.randrange(1, 4),
            "offset": lambda: 0,
            "data": lambda: bytes(self.rng.choice([BLOCK_BYTES, BLOCK_BYTES // 2])),
            "checksums": lambda: [7] * self._missing.get(self._named, 1),
            "load_timeout": lambda: Duration(seconds=1),
            "recompute_time_per_block": lambda: Duration(nanos=self.rng.choice([1, 10**6])),
            "bytes_per_second": lambda: 0,
            "ttl": lambda: Duration(seconds=1),
            "owner": lambda: "somebody",
            "page_size": lambda: self.rng.randrange(3),
        }

    def method(self) -> MethodDescriptor:
        while True:
            method = self.rng.choice(METHODS)
            if method.name not in SELDOM or not self.rng.randrange(8):
                return method

    def message(self, kind: Any) -> Message:
        """Most fields are there and mean something most of the time."""
        fields = {}
        for field in kind.fields:
            chance = self.rng.randrange(20)
            if chance == 0:
                continue
            value = self._sensible(field) if chance > 1 else self._anything(field)
            if value is not None:
                fields[field.name] = value
        return GetMessageClass(kind)(**fields)

    def take(self, answer: Message) -> None:
        """Learns ids, and how many blocks the latest reservation is for."""
        for field, value in answer.ListFields():
            if field.name in self.ids:
                self.ids[field.name].append(value)
            elif field.name == "missing_indexes":
                self._missing[self.ids["reservation_id"][-1]] = len(value)
            elif field.message_type is not None and not field.is_repeated:
                self.take(value)

    def _sensible(self, field: FieldDescriptor) -> Any:
        name = field.name.removesuffix("s").removeprefix("returned_")
        if name != field.name.removesuffix("s") and self.rng.randrange(4):
            return None  # or there would hardly be a lease left
        if said := self.ids.get(name):
            one = said[-self.rng.randint(1, min(3, len(said)))]
            self._named = one
            return [one] if field.is_repeated else one
        if "hash" in name:
            return self._hashes()
        if field.enum_type is not None:
            return self.rng.choice([each.number for each in field.enum_type.values])
        return self._sound[field.name]() if field.name in self._sound else None

    def _hashes(self) -> bytes:
        """Of a chain that changes now and then, from its start mostly."""
        if not self.rng.randrange(25):
            self._chain = self._fresh_chain(6)
        first = self.rng.choice([0, 0, 0, 3])
        twice = self._chain[:1] * (not self.rng.randrange(20))
        return pack_hashes([*self._chain[first : self.rng.randint(1, 6)], *twice])

    def _anything(self, field: FieldDescriptor) -> Any:
        if field.is_repeated:
            return [self._one(field) for _ in range(self.rng.randrange(7))]
        return self._one(field)

    def _one(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is not None:
            return rng.randint(-5, 999)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice([0, 1, 31, 32, 33, 64, 32 * 40_000, 1_100_000]))
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(["", "nobody", "\0", "\U0001f600" * 9, "x" * 1000])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return rng.choice([0.0, -1.5, float("inf"), float("nan")])
        low, high = _INTEGERS[field.cpp_type]
        return rng.choice([0, 1, low, high, rng.randint(low, high)])


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
    fuzzer, looker, stub = Fuzzer(seed, tools), Fuzzer(seed, tools), small_service.stub
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
