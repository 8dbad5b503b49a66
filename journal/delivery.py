"""Carries events from a journal to billing, in the background.

    outbox --batch--> courier --outcomes--> acknowledge | dead letter | try again later
           a full batch: the one behind it is on its way meanwhile

Invariant: an event leaves the outbox only when billing has it, or is refused for good and kept as
a dead letter; batches are acknowledged in their order, and when one fails all behind it are sent
again: delivery is at least once. Billing being down slows nobody: who waits, waits for the journal,
never for this task. Event loop; the outbox's blocking calls run on one thread of their own.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import grpc

from journal.dialect import EndedT, SubjectT
from journal.format import StoredEnd
from journal.outbox import DeadLetter, Outbox
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error

__all__ = [
    "BillingAnswerError",
    "Courier",
    "Delivery",
    "DeliveryListener",
    "DeliverySettings",
    "Verdict",
]

log = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    # A new channel gets a connection of its own, whatever the last one knew.
    ("grpc.use_local_subchannel_pool", 1),
)

CALLS_MAX = 2
"""Batches on their way at once: billing takes one in while it commits the one before."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    address: str
    """Of the billing service."""
    credentials: grpc.ChannelCredentials | None = None
    """None: in clear."""
    batch_events_max: int = 1_000
    """What billing takes in a call."""
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What billing made of an event."""

    status: str
    """One of `STATUSES`."""
    reason: str = ""


STATUSES = ("ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED")

CarriedT = TypeVar("CarriedT")


class Courier(Protocol[CarriedT]):
    """Speaks to billing of one kind of event."""

    def fitting(self, ends: Sequence[StoredEnd[CarriedT]]) -> Sequence[StoredEnd[CarriedT]]:
        """The first of `ends` that one call takes, at least one."""
        ...

    async def carry(
        self,
        channel: grpc.aio.Channel,
        ends: Sequence[StoredEnd[CarriedT]],
        timeout_seconds: float,
    ) -> Sequence[Verdict]:
        """Sends `ends` in one call: a verdict for each, in their order. Raises AioRpcError, and
        BillingAnswerError for an answer that is not of these events. REQUIRES: they fit."""
        ...


@dataclass(frozen=True, slots=True)
class _Flight(Generic[CarriedT]):
    """A batch on its way."""

    ends: Sequence[StoredEnd[CarriedT]]
    call: "asyncio.Task[Sequence[Verdict]]"
    more: bool
    """Whether there was no room in it for all that waits."""


class Delivery(Generic[SubjectT, EndedT]):
    """`start`, `wake` after each new event, `stop` at the end."""

    def __init__(
        self,
        outbox: Outbox[SubjectT, EndedT],
        courier: Courier[EndedT],
        settings: DeliverySettings,
        listener: DeliveryListener,
    ) -> None:
        self._outbox = outbox
        self._courier = courier
        self._settings = settings
        self._listener = listener
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="delivery")
        self._channel = self._connect()
        self._new = asyncio.Event()
        self._idle = asyncio.Event()
        self._batch_max = settings.batch_events_max
        self._failures = 0
        """Since billing last took something."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._new.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="delivery")

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
        while True:
            try:
                if await self._deliver():
                    continue
                self._idle.set()
                await self._new.wait()
                self._new.clear()
            except Exception as error:
                # Whatever it is: what is never sent again would be lost in silence.
                self._failures += 1
                self._listener.delivery_failed()
                _log_failure(error, self._failures)
                await asyncio.sleep(self._backoff_seconds(self._failures))
                await self._reconnect()

    async def _deliver(self) -> bool:
        """Sends what waits, full batches one behind the other; True when there may be more."""
        self._new.clear()
        flights: deque[_Flight[EndedT]] = deque()
        try:
            while await self._take_off(flights):
                if len(flights) < CALLS_MAX and flights[-1].more:
                    continue
                if not await self._land(flights.popleft()):
                    return True
        finally:
            # What billing has of them it will say when they are sent again.
            for flight in flights:
                flight.call.cancel()
        return self._new.is_set()

    async def _take_off(self, flights: "deque[_Flight[EndedT]]") -> bool:
        """Sends one batch more, where there is one and the last was full; False: none is on its
        way."""
        if not flights or (flights[-1].more and len(flights) < CALLS_MAX):
            behind = flights[-1].ends[-1].sequence if flights else 0
            limit = self._batch_max
            pending = await self._blocking(lambda: self._outbox.pending(limit, behind))
            if pending:
                ends = self._courier.fitting(pending)
                more = len(ends) < len(pending) or len(pending) == limit
                flights.append(_Flight(ends, self._send(ends), more))
            elif flights:
                flights[-1] = replace(flights[-1], more=False)
        return bool(flights)

    def _send(self, ends: Sequence[StoredEnd[EndedT]]) -> "asyncio.Task[Sequence[Verdict]]":
        carried = self._courier.carry(self._channel, ends, self._settings.call_timeout_seconds)
        call = asyncio.ensure_future(carried)
        # Who gives one up does not ask how it ended; sending again says the same.
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
        return call

    async def _land(self, flight: _Flight[EndedT]) -> bool:
        """False: what is behind it is not to be acknowledged before it is sent again."""
        try:
            verdicts = await flight.call
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            await self._narrow_down(flight.ends, error)
            return False
        await self._take_verdicts(flight.ends, verdicts)
        self._batch_max = self._settings.batch_events_max
        self._failures = 0
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
        self, pending: Sequence[StoredEnd[EndedT]], error: grpc.aio.AioRpcError
    ) -> None:
        """The call itself was refused for good: finds the event that is at fault by halving."""
        if len(pending) > 1:
            self._batch_max = len(pending) // 2
            return
        reason = read_error(error).reason or "INVALID_ARGUMENT"
        await self._acknowledge(pending, [DeadLetter(pending[0], "REJECTED", reason)])
        self._count(["rejected"])

    async def _take_verdicts(
        self, pending: Sequence[StoredEnd[EndedT]], verdicts: Sequence[Verdict]
    ) -> None:
        refused = []
        names = []
        for verdict, one in zip(verdicts, pending, strict=True):
            if verdict.status not in STATUSES:
                raise BillingAnswerError(f"billing answered {verdict.status} for an event")
            names.append(verdict.status.lower())
            if verdict.status in ("CONFLICT", "REJECTED"):
                refused.append(DeadLetter(one, verdict.status, verdict.reason))
        await self._acknowledge(pending, refused)
        self._count(names)

    async def _acknowledge(
        self, pending: Sequence[StoredEnd[EndedT]], refused: Sequence[DeadLetter[EndedT]]
    ) -> None:
        for letter in refused:
            log.error(
                "billing refuses an event; it is kept in dead_letters.jsonl",
                extra={
                    "event": letter.end.name,
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


class BillingAnswerError(Exception):
    """Billing answered something that its contract does not allow."""


def _log_failure(error: Exception, failures: int) -> None:
    if not isinstance(error, grpc.aio.AioRpcError | OSError | BillingAnswerError):
        log.exception("delivery to billing failed unexpectedly", exc_info=error)
    # Once at the start of an outage, then ever more rarely.
    elif failures & (failures - 1) == 0:
        log.warning(
            "events wait: billing does not take them",
            extra={"problem": _problem(error), "failures": failures},
        )


def _problem(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
