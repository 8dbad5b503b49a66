"""Usage events on their way to billing's `RecordUsage`; how is `journal/delivery.py`'s."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import grpc

from journal.delivery import (
    BillingAnswerError,
    Delivery,
    DeliveryListener,
    DeliverySettings,
    Verdict,
)
from journal.format import StoredEnd
from kvtier.v1 import usage_pb2
from worker.usage_event import AdmittedRequest, UsageEvent
from worker.usage_journal import UsageOutbox

__all__ = ["UsageDelivery"]

RECORD_USAGE = f"/{usage_pb2.DESCRIPTOR.services_by_name['UsageService'].full_name}/RecordUsage"

CALL_BYTES_MAX = 2 << 20
"""Of events in one call: gRPC takes 4 MiB, and what each event is wrapped in is not counted."""


class UsageDelivery(Delivery[AdmittedRequest, UsageEvent]):
    """`start`, `wake` after each new event, `stop` at the end."""

    def __init__(
        self, outbox: UsageOutbox, settings: DeliverySettings, listener: DeliveryListener
    ) -> None:
        super().__init__(outbox, _Courier(), settings, listener)


class _Courier:
    def fitting(self, ends: Sequence[StoredEnd[UsageEvent]]) -> Sequence[StoredEnd[UsageEvent]]:
        size = 0
        for count, end in enumerate(ends):
            size += len(end.wire)
            if count and size > CALL_BYTES_MAX:
                return ends[:count]
        return ends

    async def carry(
        self,
        channel: grpc.aio.Channel,
        ends: Sequence[StoredEnd[UsageEvent]],
        timeout_seconds: float,
    ) -> Sequence[Verdict]:
        # The request's bytes are put together of the events': nothing is decoded on the way.
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, usage_pb2.RecordUsageResponse] = (
            channel.unary_unary(
                RECORD_USAGE,
                request_serializer=None,
                response_deserializer=usage_pb2.RecordUsageResponse.FromString,
            )
        )
        response = await call(request_bytes(end.wire for end in ends), timeout=timeout_seconds)
        if response is None:  # gRPC's way of telling an OK without its message
            raise BillingAnswerError("billing said OK without an answer")
        outcomes = response.outcomes
        if [o.request_id for o in outcomes] != [end.name for end in ends]:
            raise BillingAnswerError("billing's outcomes are not those of the events sent")
        return [_verdict(outcome.status, outcome.reason) for outcome in outcomes]


def request_bytes(events: Iterable[bytes]) -> bytes:
    """A `RecordUsageRequest` of serialized events, serialized."""
    parts: list[bytes] = []
    for event in events:
        parts += (_EVENTS_TAG, _varint(len(event)), event)
    return b"".join(parts)


_EVENTS_TAG = bytes([usage_pb2.RecordUsageRequest.EVENTS_FIELD_NUMBER << 3 | 2])
"""Of a repeated field of messages, each with its length before it."""


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


@lru_cache(maxsize=64)
def _verdict(status: usage_pb2.RecordStatus, reason: str) -> Verdict:
    name = usage_pb2.RecordStatus.Name(status)
    return Verdict(name.removeprefix("RECORD_STATUS_"), reason)
