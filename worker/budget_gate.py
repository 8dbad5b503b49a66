"""Lets a request in when billing has reserved for it, and says why when it has not.

    admit --> reserved | free | allowance | refused
    not_served --> released

Invariant: while this gate is there, no request is admitted without billing's word, but for those
that the allowance takes while billing cannot be asked; an admitted request ends with its usage
event, which settles what is held, or is released. A billing service that is down or hung costs a
request at most one timeout, and soon none (`kvtier/breaker.py`); a caller that goes away or had
less time than that says nothing about billing. Event loop.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from kvtier.breaker import Breaker
from kvtier.errors import WireError
from worker.budget_client import BudgetAnswer, BudgetNeed
from worker.errors import (
    BudgetExhaustedError,
    BudgetUnavailableError,
    InsufficientBalanceError,
    PriceUnknownError,
    QuotaExceededError,
    RequestDeadlineError,
    WorkerError,
)

__all__ = ["Allowance", "BudgetGate", "BudgetGateListener"]

_REFUSALS: dict[str, type[WorkerError]] = {
    each.reason: each
    for each in (
        InsufficientBalanceError,
        BudgetExhaustedError,
        QuotaExceededError,
        PriceUnknownError,
    )
}

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Billing could not be asked. Anything else is a word of it, and no way around it."""

_UNCERTAIN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""Something broke behind such an answer, as behind one without a reason: it may be held."""

_BREAKER_WAIT_SECONDS = 0.5
_BREAKER_WAIT_SECONDS_MAX = 5.0


class BudgetService(Protocol):
    """What the gate asks: `worker.budget_client.BudgetClient`."""

    async def reserve(self, need: BudgetNeed, timeout_seconds: float) -> BudgetAnswer: ...

    def release(self, request_id: str) -> None: ...


class BudgetGateListener(Protocol):
    def budget_asked(self, outcome: str, seconds: float) -> None:
        """`outcome`: reserved, free, allowance, refused, unavailable or given_up."""
        ...


@dataclass(slots=True)
class Allowance:
    """What is let in while billing cannot be asked; whole again when it answers."""

    requests: int
    tokens: int
    _used_requests: int = 0
    _used_tokens: int = 0

    def take(self, tokens: int) -> bool:
        """False: it is used up."""
        if self._used_requests >= self.requests or self._used_tokens + tokens > self.tokens:
            return False
        self._used_requests += 1
        self._used_tokens += tokens
        return True

    def refill(self) -> None:
        self._used_requests = self._used_tokens = 0


class BudgetGate:
    def __init__(
        self,
        service: BudgetService,
        listener: BudgetGateListener,
        timeout_seconds: float,
        allowance: Allowance | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`allowance`: None lets nothing in without billing's word."""
        self._service = service
        self._listener = listener
        self._timeout_seconds = timeout_seconds
        self._allowance = allowance
        self._clock = clock
        self._breaker = Breaker(
            clock,
            wait_seconds=_BREAKER_WAIT_SECONDS,
            wait_seconds_max=_BREAKER_WAIT_SECONDS_MAX,
        )

    async def admit(self, need: BudgetNeed, seconds_left: float) -> None:
        """Returns when the request may be admitted.

        Raises InsufficientBalanceError, BudgetExhaustedError, QuotaExceededError,
        PriceUnknownError, BudgetUnavailableError, and RequestDeadlineError where the request's own
        time was over first; then nothing stays held for it.
        """
        started = self._clock()
        outcome = "unavailable"
        try:
            outcome = await self._admit(need, seconds_left)
        except BudgetUnavailableError:
            raise
        except (asyncio.CancelledError, RequestDeadlineError):
            outcome = "given_up"
            raise
        except WorkerError:
            outcome = "refused"
            raise
        finally:
            self._listener.budget_asked(outcome, self._clock() - started)

    def not_served(self, request_id: str) -> None:
        """An admitted request will have no usage event."""
        self._service.release(request_id)

    async def _admit(self, need: BudgetNeed, seconds_left: float) -> str:
        timeout_seconds = min(self._timeout_seconds, max(0.001, seconds_left))
        if not self._breaker.admits() and not self._breaker.begin_probe():
            return self._without_billing(need, "it does not answer", asked=False)
        try:
            answer = await self._service.reserve(need, timeout_seconds)
        except BaseException:
            # Cancelled: whatever came of it, nobody will be served by it.
            self._breaker.given_up()
            self._service.release(need.request.request_id)
            raise
        refusal = answer.refusal
        if (
            refusal is not None
            and refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
            and timeout_seconds < self._timeout_seconds
        ):
            # It had less time to answer than it may take: neither a failure nor a way around it.
            self._breaker.given_up()
            self._service.release(need.request.request_id)
            raise RequestDeadlineError(
                "the request's deadline passed before billing said whether it may be served"
            )
        if refusal is not None and refusal.code in _AWAY:
            self._breaker.failed()
            return self._without_billing(need, refusal.message, asked=True)
        self._breaker.succeeded()
        if self._allowance is not None:
            self._allowance.refill()
        if refusal is not None:
            if not refusal.reason or refusal.code in _UNCERTAIN:
                self._service.release(need.request.request_id)
            raise _refused(refusal)
        return "reserved" if answer.held else "free"

    def _without_billing(self, need: BudgetNeed, problem: str, *, asked: bool) -> str:
        if self._allowance is not None and self._allowance.take(need.tokens):
            return "allowance"
        if asked:
            # It may have been held all the same.
            self._service.release(need.request.request_id)
        used_up = " and the allowance is used up" if self._allowance is not None else ""
        raise BudgetUnavailableError(
            f"billing cannot be asked whether the request may be served ({problem}){used_up}; send"
            " again soon"
        )


def _refused(refusal: WireError) -> WorkerError:
    kind = _REFUSALS.get(refusal.reason)
    if kind is not None:
        return kind(refusal.message, **refusal.metadata)
    return BudgetUnavailableError(
        f"billing refuses to say whether the request may be served: {refusal.code.name}"
        f" {refusal.reason} {refusal.message}".rstrip()
    )
