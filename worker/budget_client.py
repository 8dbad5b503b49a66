"""The worker's side of `BudgetService`: one call to reserve, and releases that go on by themselves.

Invariant: a call never takes longer than it may; a release is sent until billing takes it, has
refused it REFUSALS_MAX times, or has let the hold end by itself; at most RELEASES_MAX wait. One
that is given up is counted: its hold ends by itself. Event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.channels import open_aio_channel
from kvtier.errors import WireError, read_error
from kvtier.v1 import budget_pb2, budget_pb2_grpc
from worker.usage_event import AdmittedRequest

__all__ = ["BudgetAnswer", "BudgetClient", "BudgetNeed"]

log = logging.getLogger(__name__)

RELEASES_MAX = 10_000
"""The oldest gives way: what is held for it ends by itself."""

RELEASE_SECONDS_MAX = 900.0
"""So long a release is tried: by then billing has let the hold go."""

REFUSALS_MAX = 5
"""So often billing is asked again that answers with an error, not counting that it is away."""

_CALL_SECONDS = 5.0
_BACKOFF_SECONDS_MAX = 5.0

CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    # Requests wait for it: a billing service that is back is to be found soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class BudgetNeed:
    """A request as billing must know it before it is admitted."""

    request: AdmittedRequest
    prompt_tokens: int
    completion_tokens: int
    """At most, of all samples together."""
    ttl_class: str
    deadline_ns: int
    """Wall clock: it ends before."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class BudgetAnswer:
    """Billing's word; with a refusal, nothing is held."""

    held: bool
    refusal: WireError | None = None


@dataclass(slots=True)
class _Release:
    request_id: str
    until: float
    """Monotonic seconds."""
    refusals: int = 0


class _Told(Enum):
    RELEASED = "released"
    AWAY = "away"
    REFUSED = "refused"


class BudgetClient:
    """`start`, then `reserve` and `release`; `close` at the end."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        given_up: Callable[[], None],
    ) -> None:
        """`given_up` is called for each release that will not be sent any more."""
        self._channel = open_aio_channel(address, credentials, CHANNEL_OPTIONS)
        self._stub = budget_pb2_grpc.BudgetServiceStub(self._channel)
        self._given_up = given_up
        self._releases: deque[_Release] = deque()
        self._new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_releases(self) -> int:
        return len(self._releases)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="budget releases")

    async def reserve(self, need: BudgetNeed, timeout_seconds: float) -> BudgetAnswer:
        """Asks once; every error is in the answer."""
        try:
            response = await self._stub.ReserveBudget(_message(need), timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            return BudgetAnswer(False, read_error(error))
        if response is None:  # gRPC's way of telling an OK without its message
            unsaid = WireError(grpc.StatusCode.UNAVAILABLE, "", "OK without an answer", {})
            return BudgetAnswer(False, unsaid)
        return BudgetAnswer(response.HasField("expire_time"))

    def release(self, request_id: str) -> None:
        """The request was not served. Returns at once."""
        if len(self._releases) >= RELEASES_MAX:
            self._give_up(self._releases[0], "too many wait")
        self._releases.append(_Release(request_id, time.monotonic() + RELEASE_SECONDS_MAX))
        self._new.set()

    async def close(self, seconds: float) -> None:
        """Sends what waits, so long as that takes no longer than `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._releases and self._task is not None:
                    await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._channel.close()

    async def _run(self) -> None:
        failures = 0
        while True:
            if not self._releases:
                self._new.clear()
                await self._new.wait()
            release = self._releases[0]
            told = await self._ask(release)
            if told is _Told.RELEASED:
                failures = 0
                self._drop(release)
                continue
            failures += 1
            self._try_later(release, told)
            await asyncio.sleep(min(_BACKOFF_SECONDS_MAX, 0.1 * 2.0 ** min(failures, 10)))

    def _try_later(self, release: _Release, told: _Told) -> None:
        if time.monotonic() >= release.until:
            self._give_up(release, "its hold has ended by itself")
        elif told is _Told.REFUSED:
            release.refusals += 1
            if release.refusals >= REFUSALS_MAX:
                self._give_up(release, "billing refuses it")
            elif self._drop(release):
                self._releases.append(release)  # The others need not wait for it.

    async def _ask(self, release: _Release) -> _Told:
        request = budget_pb2.ReleaseBudgetRequest(request_id=release.request_id)
        try:
            await self._stub.ReleaseBudget(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return _Told.AWAY
            log.error("billing refuses a release", extra={"problem": error.details()})
            return _Told.REFUSED
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return _Told.AWAY  # The call was, and not this task.
        except Exception:
            # Whatever it is, the releases behind this one are still to be sent.
            log.exception("a release cannot be sent")
            return _Told.REFUSED
        return _Told.RELEASED

    def _drop(self, release: _Release) -> bool:
        """False: it has given way to others meanwhile."""
        if self._releases and self._releases[0] is release:
            self._releases.popleft()
            return True
        return False

    def _give_up(self, release: _Release, why: str) -> None:
        if self._drop(release):
            log.error("a release is given up; the hold ends by itself", extra={"problem": why})
            self._given_up()


def _message(need: BudgetNeed) -> budget_pb2.ReserveBudgetRequest:
    request = need.request
    deadline = Timestamp()
    deadline.FromNanoseconds(need.deadline_ns)
    return budget_pb2.ReserveBudgetRequest(
        request_id=request.request_id,
        tenant_id=request.tenant_id,
        project_id=request.project_id or "",
        key_id=request.key_id or "",
        model=request.model,
        prompt_tokens=need.prompt_tokens,
        completion_tokens=need.completion_tokens,
        service_class=request.service_class or "",
        ttl_class=need.ttl_class,
        deadline_time=deadline,
    )
