"""Reservations that wait together are decided together, in one transaction.

    reserve(), release() --> waiting --> one order of the ledger --> each its own answer

Invariant: what is answered is durable; a refusal writes nothing. Answers come in the order of the
asks. Any thread; decided on the ledger's writer.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from billing.errors import (
    BillingError,
    InvalidReservationError,
    LedgerUnavailableError,
    ReservationConflictError,
)
from billing.hold import Hold, ReserveAsk
from billing.ledger_rows import known_requests
from billing.standing import Standing
from billing.usage import TEXT_CHARACTERS_MAX, TOKENS_MAX

if TYPE_CHECKING:
    from billing.ledger import Ledger

__all__ = ["Reservations", "Reserved", "check_ask"]

WAITING_MAX = 4_096
"""One more is told to send again."""

TOGETHER_MAX = 512
"""Of one transaction."""

DEADLINE_NS_MAX = 31 * 24 * 3600 * 10**9
"""How far a request's deadline may lie ahead."""


@dataclass(frozen=True, slots=True)
class Reserved:
    hold: Hold
    again: bool = False
    """It was held already, for the same ask."""
    held: bool = True
    """False: no budget covers the request."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: ReserveAsk | str
    """A request id: to be released."""
    done: "Future[Any]"


class Reservations:
    def __init__(self, ledger: "Ledger") -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._ordered = False

    def reserve(self, ask: ReserveAsk) -> "Future[Reserved]":
        """Its future fails with what `Standing.reserve` refuses, ReservationConflictError or
        LedgerUnavailableError. Raises InvalidReservationError, LedgerUnavailableError.
        """
        return self._add(ask)

    def release(self, request_id: str) -> "Future[bool]":
        """False: nothing was held. Raises LedgerUnavailableError, as its future may."""
        return self._add(request_id)

    def _add(self, item: ReserveAsk | str) -> "Future[Any]":
        waiting = _Waiting(item, Future())
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                raise LedgerUnavailableError("too many reservations wait; send again")
            self._waiting.append(waiting)
            ordered, self._ordered = self._ordered, True
        if not ordered:
            self._order()
        return waiting.done

    def _order(self) -> None:
        taken: list[_Waiting] = []

        def decide(connection: Connection, standing: Standing, now_ns: int) -> list[Any]:
            taken.extend(self._take())
            return _decided(connection, standing, [each.item for each in taken], now_ns)

        def answer(done: "Future[list[Any]]") -> None:
            error = done.exception()
            if error is not None:
                # Also those that came meanwhile: nobody may wait for an order that is not there.
                for each in [*taken, *self._take()]:
                    _tell(each.done, error)
            else:
                for each, result in zip(taken, done.result(), strict=True):
                    _tell(each.done, result)
            self._go_on()

        try:
            self._ledger.decide(decide).add_done_callback(answer)
        except LedgerUnavailableError as error:
            for each in self._take():
                _tell(each.done, error)
            self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            more = bool(self._waiting)
            self._ordered = more
        if more:
            self._order()

    def _take(self) -> list[_Waiting]:
        with self._lock:
            count = min(TOGETHER_MAX, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]


def check_ask(ask: ReserveAsk, now_ns: int) -> None:
    """Raises InvalidReservationError for what no event can settle."""
    names = (ask.request_id, ask.tenant_id, ask.shape.model)
    texts = (ask.project_id, ask.key_id, ask.shape.service_class, ask.shape.ttl_class)
    if not all(names) or any(
        len(text) > TEXT_CHARACTERS_MAX or not text.isprintable() for text in (*names, *texts)
    ):
        raise InvalidReservationError(
            "request_id, tenant_id and model must be said, in printable characters"
        )
    counts = (ask.shape.prompt_tokens, ask.shape.completion_tokens)
    if any(not 0 <= count <= TOKENS_MAX for count in counts):
        raise InvalidReservationError("token counts are from 0 to 10^10")
    if not now_ns < ask.deadline_ns < now_ns + DEADLINE_NS_MAX:
        raise InvalidReservationError("the deadline lies within the next 31 days")


def _decided(
    connection: Connection, standing: Standing, items: Sequence[ReserveAsk | str], now_ns: int
) -> list[Any]:
    asks = [item for item in items if isinstance(item, ReserveAsk)]
    ended = {row[0] for row in known_requests(connection, [ask.request_id for ask in asks])}
    results: list[Any] = []
    for item in items:
        if isinstance(item, str):
            results.append(standing.release(item, now_ns))
        else:
            results.append(_reserved(standing, item, item.request_id in ended, now_ns))
    return results


def _reserved(
    standing: Standing, ask: ReserveAsk, ended: bool, now_ns: int
) -> Reserved | BillingError:
    if ended:
        return ReservationConflictError("the ledger has that request's usage event already")
    standing.expire(now_ns)
    held = standing.holds.get(ask.request_id)
    if held is not None:
        if held.ask != ask:
            return ReservationConflictError("something else is held for that request_id")
        return Reserved(held, again=True)
    made = standing.reserve(ask, now_ns)
    if isinstance(made, BillingError):
        return made
    return Reserved(made, held=standing.holds.get(ask.request_id) is made)


def _tell(done: "Future[Any]", result: Any) -> None:
    if not done.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
    else:
        done.set_result(result)
