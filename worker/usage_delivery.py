"""Usage events on their way to billing's `RecordUsage`; how is `journal/delivery.py`'s."""

from collections.abc import Sequence

import grpc

from journal.delivery import (
    BillingAnswerError,
    Delivery,
    DeliveryListener,
    DeliverySettings,
    Verdict,
)
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from worker.usage_event import AdmittedRequest, UsageEvent
from worker.usage_journal import UsageOutbox
from worker.usage_wire import event_message

__all__ = ["UsageDelivery"]

CALL_BYTES_MAX = 2 << 20
"""Of events in one call: gRPC takes 4 MiB, and what each event is wrapped in is not counted."""


class UsageDelivery(Delivery[AdmittedRequest, UsageEvent]):
    """`start`, `wake` after each new event, `stop` at the end."""

    def __init__(
        self, outbox: UsageOutbox, settings: DeliverySettings, listener: DeliveryListener
    ) -> None:
        super().__init__(outbox, _Courier(), settings, listener)


class _Courier:
    async def carry(
        self, channel: grpc.aio.Channel, events: Sequence[UsageEvent], timeout_seconds: float
    ) -> Sequence[Verdict]:
        messages = _fitting(events)
        response = await usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(
            usage_pb2.RecordUsageRequest(events=messages), timeout=timeout_seconds
        )
        if response is None:  # gRPC's way of telling an OK without its message
            raise BillingAnswerError("billing said OK without an answer")
        outcomes = response.outcomes
        if [o.request_id for o in outcomes] != [m.request_id for m in messages]:
            raise BillingAnswerError("billing's outcomes are not those of the events sent")
        return [_verdict(outcome) for outcome in outcomes]

    def name(self, event: UsageEvent) -> str:
        return event.request.request_id


def _fitting(events: Sequence[UsageEvent]) -> list[usage_pb2.UsageEvent]:
    """Messages of as many as one call takes, at least one."""
    messages, size = list[usage_pb2.UsageEvent](), 0
    for event in events:
        message = event_message(event)
        size += message.ByteSize()
        if messages and size > CALL_BYTES_MAX:
            break
        messages.append(message)
    return messages


def _verdict(outcome: usage_pb2.RecordOutcome) -> Verdict:
    status = usage_pb2.RecordStatus.Name(outcome.status)
    return Verdict(status.removeprefix("RECORD_STATUS_"), outcome.reason)
