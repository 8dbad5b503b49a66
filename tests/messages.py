"""Messages for the cache service's calls, made from the descriptors.

So a new RPC or field is fuzzed without being named here. Ids come often from what the service said
before, other fields from what makes sense: only that gets past the first checks.
"""

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.keys import KEY_SCHEME_VERSION, BlockHash, pack_hashes
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import control_pb2, explain_pb2

__all__ = ["BLOCK_BYTES", "EVERY_ONE", "LOOKING", "METHODS", "STEERING", "Fuzzer"]

BLOCK_BYTES = 8192
BYTES_PER_SECOND_MIN = 10_000_000
"""A slower pass over the SSD is right and takes for ever."""

SERVICE = pb.DESCRIPTOR.services_by_name["CacheService"]
METHODS = sorted(SERVICE.methods, key=lambda method: str(method.name))
LOOKING = list(explain_pb2.DESCRIPTOR.services_by_name["ExplainService"].methods)
"""Calls that change nothing: made in between, they leave the lives of the others as they are."""
STEERING = list(control_pb2.DESCRIPTOR.services_by_name["ControlService"].methods)
"""Calls of operators, seldom enough that blocks live for a while."""
EVERY_ONE = METHODS + LOOKING + STEERING
SELDOM = {"OpenSession", "CloseSession", "VerifyBlocks", "GetStats"}
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Fuzzer:
    """Makes messages; remembers what the service said."""

    def __init__(self, rng: random.Random, fresh_chain: Callable[[int], list[BlockHash]]) -> None:
        self.rng = rng
        self.ids: dict[str, list[str]] = {"session_id": [], "lease_id": [], "reservation_id": []}
        self._missing = {"": 1}
        """Reservation -> blocks to store."""
        self._named = ""
        """The reservation named last."""
        self._fresh_chain = fresh_chain
        self._chain = fresh_chain(6)
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
            "ttl": lambda: Duration(seconds=self.rng.choice([1, 60, 3600])),
            "unit_end_indexes": lambda: [self.rng.randrange(6)],
            "bytes_per_second": lambda: 0,
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
            if field.name == "bytes_per_second" and value is not None and value > 0:
                value = max(value, BYTES_PER_SECOND_MIN)
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
            chains = [self._hashes() for _ in range(self.rng.randint(1, 3))]
            return chains if field.is_repeated else chains[0]
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
