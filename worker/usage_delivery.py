"""Carries usage events from the journal to billing, in the background.

    outbox --batch--> RecordUsage --outcomes--> acknowledge | dead letter | try again later

Invariant: an event leaves the outbox only when billing has it, or is refused for good and kept as
a dead letter; delivery is at least once. Billing being down slows nobody: requests wait for the
journal, never for this task. Event loop; the outbox's blocking calls run on one thread of its own.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from worker.usage_outbox import DeadLetter, PendingEvent, UsageOutbox
from worker.usage_wire import event_message

__all__ = ["DeliveryListener", "DeliverySettings", "UsageDelivery"]

log = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    # A new channel gets a connection of its own, whatever the last one knew.
    ("grpc.use_local_subchannel_pool", 1),
)

CALL_BYTES_MAX = 2 << 20
"""Of events in one call: gRPC takes 4 MiB, and what each event is wrapped in is not counted."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    address: str
    """Of the billing service."""
    credentials: grpc.ChannelCredentials | None = None
    """None: in clear."""
    batch_events_max: int = 500
    call_timeout_seconds: float = 10.0
    backoff_seconds: float = 0.2
    """After the first failure, less up to half at random; doubles with each."""
    backoff_seconds_max: float = 30.0


class DeliveryListener(Protocol):
    """Is told what became of events, on the event loop."""

    def delivered(self, outcome: str, count: int) -> None:
        """`outcome`: accepted, duplicate, conflict or rejected."""
        ...

    def delivery_failed(self) -> None: ...


class UsageDelivery:
    """`start`, `wake` after each new event, `stop` at the end."""

    def __init__(
        self, outbox: UsageOutbox, settings: DeliverySettings, listener: DeliveryListener
    ) -> None:
        self._outbox = outbox
        self._settings = settings
        self._listener = listener
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="usage-delivery")
        self._channel = self._connect()
        self._new = asyncio.Event()
        self._idle = asyncio.Event()
        self._batch_max = settings.batch_events_max
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._new.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="usage delivery")

    def wake(self) -> None:
        """There is a new durable event."""
        self._idle.clear()
        self._new.set()

    async def flush(self, timeout_seconds: float) -> bool:
        """Waits until nothing is left to deliver; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Ends the task; what is not delivered stays in the journal for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._channel.close()
        self._executor.shutdown(wait=True)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if await self._deliver_batch():
                    failures = 0
                    continue
                self._idle.set()
                await self._new.wait()
                self._new.clear()
            except Exception as error:
                # Whatever it is: usage that is never sent again would be lost in silence.
                failures += 1
                self._listener.delivery_failed()
                _log_failure(error, failures)
                await asyncio.sleep(self._backoff_seconds(failures))
                await self._reconnect()

    async def _deliver_batch(self) -> bool:
        """True when there may be more to deliver."""
        self._new.clear()
        pending = await self._blocking(lambda: self._outbox.pending(self._batch_max))
        if not pending:
            return self._new.is_set()
        messages = _fitting(pending)
        pending = pending[: len(messages)]
        try:
            response = await usage_pb2_grpc.UsageServiceStub(self._channel).RecordUsage(
                usage_pb2.RecordUsageRequest(events=messages),
                timeout=self._settings.call_timeout_seconds,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            await self._narrow_down(pending, error)
            return True
        if response is None:  # gRPC's way of telling an OK without its message
            raise BillingAnswerError("billing said OK without an answer")
        await self._take_outcomes(pending, response.outcomes)
        self._batch_max = self._settings.batch_events_max
        return True

    async def _reconnect(self) -> None:
        """The old connection may be dead without a word, or its transport wait for minutes before
        it tries again; how long to wait is decided here only.
        """
        await self._channel.close()
        self._channel = self._connect()

    def _connect(self) -> grpc.aio.Channel:
        return open_aio_channel(self._settings.address, self._settings.credentials, CHANNEL_OPTIONS)

    async def _narrow_down(
        self, pending: Sequence[PendingEvent], error: grpc.aio.AioRpcError
    ) -> None:
        """The call itself was refused for good: finds the event that is at fault by halving."""
        if len(pending) > 1:
            self._batch_max = len(pending) // 2
            return
        reason = read_error(error).reason or "INVALID_ARGUMENT"
        await self._acknowledge(pending, [DeadLetter(pending[0].event, "REJECTED", reason)])
        self._count(["rejected"])

    async def _take_outcomes(
        self, pending: Sequence[PendingEvent], outcomes: Sequence[usage_pb2.RecordOutcome]
    ) -> None:
        if [o.request_id for o in outcomes] != [p.event.request.request_id for p in pending]:
            raise BillingAnswerError("billing's outcomes are not those of the events sent")
        refused = []
        names = []
        for outcome, one in zip(outcomes, pending, strict=True):
            status = usage_pb2.RecordStatus.Name(outcome.status).removeprefix("RECORD_STATUS_")
            if status not in ("ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED"):
                raise BillingAnswerError(f"billing answered {status} for an event")
            names.append(status.lower())
            if status in ("CONFLICT", "REJECTED"):
                refused.append(DeadLetter(one.event, status, outcome.reason))
        await self._acknowledge(pending, refused)
        self._count(names)

    async def _acknowledge(
        self, pending: Sequence[PendingEvent], refused: Sequence[DeadLetter]
    ) -> None:
        for letter in refused:
            log.error(
                "billing refuses a usage event; it is kept in dead_letters.jsonl",
                extra={
                    "request_id": letter.event.request.request_id,
                    "status": letter.status,
                    "reason": letter.reason,
                },
            )
        await self._blocking(lambda: self._outbox.acknowledge(pending[-1].sequence, refused))

    def _count(self, names: Sequence[str]) -> None:
        for name in sorted(set(names)):
            self._listener.delivered(name, names.count(name))

    async def _blocking(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _backoff_seconds(self, failures: int) -> float:
        doubled = self._settings.backoff_seconds * 2.0 ** min(failures - 1, 20)
        return min(self._settings.backoff_seconds_max, doubled) * random.uniform(0.5, 1.0)


def _fitting(pending: Sequence[PendingEvent]) -> list[usage_pb2.UsageEvent]:
    """Messages of as many as one call takes, at least one."""
    messages, size = list[usage_pb2.UsageEvent](), 0
    for each in pending:
        message = event_message(each.event)
        size += message.ByteSize()
        if messages and size > CALL_BYTES_MAX:
            break
        messages.append(message)
    return messages


class BillingAnswerError(Exception):
    """Billing answered something that its contract does not allow."""


def _log_failure(error: Exception, failures: int) -> None:
    if not isinstance(error, grpc.aio.AioRpcError | OSError | BillingAnswerError):
        log.exception("usage delivery failed unexpectedly", exc_info=error)
    # Once at the start of an outage, then ever more rarely.
    elif failures & (failures - 1) == 0:
        log.warning(
            "usage events wait: billing does not take them",
            extra={"problem": _problem(error), "failures": failures},
        )


def _problem(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
