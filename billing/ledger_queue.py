"""The ledger's queue: batches of events and orders, bounded, in the order they came.

Invariant: nothing slips in behind the word to stop. Any thread puts; the writer's takes.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from billing.errors import LedgerUnavailableError
from billing.meter import Outcome, Submission

__all__ = ["Batch", "LedgerQueue", "Order", "Work"]

QUEUE_BATCHES_MAX = 64
"""Waiting batches; a full queue answers LEDGER_UNAVAILABLE and the worker sends again."""

ORDERS_BESIDE_MAX = 32
"""Places for orders behind a queue that is full of batches: a flood of events keeps no request from
being asked for."""

GROUP_EVENTS_MAX = 4_000
"""Events of one transaction, so that a caller never waits for an endless group."""


@dataclass(frozen=True, slots=True)
class Batch:
    submissions: Sequence[Submission]
    done: "Future[list[Outcome]]"


@dataclass(frozen=True, slots=True)
class Order:
    """Something else to do, in a transaction of its own."""

    call: Callable[[Connection], Any]
    done: "Future[Any]"


@dataclass(frozen=True, slots=True)
class Work:
    """What to do next; nothing at all: the patience is over."""

    group: Sequence[Batch]
    """For one transaction, before the order."""
    order: Order | None = None
    last: bool = False
    """Nothing comes after it."""


class LedgerQueue:
    def __init__(self) -> None:
        self._queue: queue.Queue[Batch | Order | None] = queue.Queue(
            QUEUE_BATCHES_MAX + ORDERS_BESIDE_MAX
        )
        self._closed = False
        self._closing = threading.Lock()

    def put(self, item: Batch | Order) -> None:
        """Raises LedgerUnavailableError when it is full or closed."""
        with self._closing:
            if self._closed:
                raise LedgerUnavailableError("the ledger is closed; send again")
            room = QUEUE_BATCHES_MAX + (ORDERS_BESIDE_MAX - 1 if isinstance(item, Order) else 0)
            if self._queue.qsize() >= room:
                raise LedgerUnavailableError(f"{room} batches wait already; send again")
            self._queue.put_nowait(item)

    def close(self) -> None:
        """What is queued is still taken. Idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def take(self, patience_seconds: float | None) -> Work:
        """Waits for an item, then takes the batches that wait behind it, up to an order."""
        group: list[Batch] = []
        event_count = 0
        try:
            item = self._queue.get(timeout=patience_seconds)
        except queue.Empty:
            return Work(group)
        while True:
            if item is None:
                return Work(group, last=True)
            if item.done.set_running_or_notify_cancel():
                if isinstance(item, Order):
                    return Work(group, item)
                group.append(item)
                event_count += len(item.submissions)
            if event_count >= GROUP_EVENTS_MAX:
                return Work(group)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return Work(group)
