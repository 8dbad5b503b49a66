"""The ledger's one writer: batches in, durable outcomes back.

    record() --> bounded queue --> writer thread: take what waits, one transaction, answer all

Invariant: when a future has its outcomes, they are on the disk. When it has an error, sending the
batch again is safe and right. Batches that arrive while a commit is under way share the next one
(group commit), which is what makes many small calls cheap. The writer thread alone owns the
connection, the head of the chain and the set of stored prices.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from billing.entry import EntryHash, genesis_hash
from billing.errors import BillingError, LedgerUnavailableError, PriceBookError
from billing.ledger_schema import entries, price_versions, refused_events
from billing.ledger_store import LedgerStore
from billing.meter import Head, Outcome, Submission, Transaction
from billing.price_book import PriceBook, PriceId

__all__ = ["Ledger", "LedgerListener"]

log = logging.getLogger(__name__)

QUEUE_BATCHES_MAX = 64
"""Waiting batches; a full queue answers LEDGER_UNAVAILABLE and the worker sends again."""

GROUP_EVENTS_MAX = 4_000
"""Events of one transaction, so that a caller never waits for an endless group."""

CLOSE_SECONDS_MAX = 30.0


class LedgerListener(Protocol):
    """Hears of each transaction, on the writer's thread; must return at once."""

    def committed(self, outcomes: Sequence[Outcome], batch_count: int, head: Head) -> None: ...

    def failed(self, batch_count: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Batch:
    submissions: Sequence[Submission]
    done: "Future[list[Outcome]]"


class Ledger:
    """Takes events, each once for ever. One per process; `close` before the store's."""

    def __init__(
        self,
        store: LedgerStore,
        book: PriceBook,
        clock_ns: Callable[[], int],
        listener: LedgerListener,
    ) -> None:
        """Starts the writer. Raises PriceBookError when `book` changed a version that was used."""
        self._store = store
        self._book = book
        self._clock_ns = clock_ns
        self._listener = listener
        self._stored_prices: frozenset[PriceId] = frozenset()
        self._head = Head(0, genesis_hash(store.ledger_id))
        store.read(lambda connection: _check_book(connection, book))
        store.read(self._load)
        self._doubtful = False  # a commit failed: what is stored may be more than what is known
        self._closed = False
        self._closing = threading.Lock()  # no batch may slip in behind the order to stop
        self._queue: queue.Queue[_Batch | None] = queue.Queue(QUEUE_BATCHES_MAX)
        self._thread = threading.Thread(
            target=self._run, args=(store.writer(),), name="ledger-writer", daemon=True
        )
        self._thread.start()

    @property
    def head(self) -> Head:
        """The end of the chain as of the last commit."""
        return self._head

    def record(self, submissions: Sequence[Submission]) -> "Future[list[Outcome]]":
        """Queues a batch; the future has the outcomes, in its order, once they are durable.

        Raises LedgerUnavailableError when the queue is full or the ledger closed; the future fails
        with it when the database refuses.
        """
        done: Future[list[Outcome]] = Future()
        with self._closing:
            if self._closed:
                raise LedgerUnavailableError("the ledger is closed; send again")
            try:
                self._queue.put_nowait(_Batch(submissions, done))
            except queue.Full:
                raise LedgerUnavailableError(
                    f"{QUEUE_BATCHES_MAX} batches wait already; send again"
                ) from None
        return done

    def close(self) -> None:
        """Records what is queued, then stops the writer. Idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join(CLOSE_SECONDS_MAX)

    def _load(self, connection: Connection) -> None:
        """What is stored, as the place to go on from."""
        query = select(entries.c.position, entries.c.hash).order_by(entries.c.position.desc())
        last = connection.execute(query.limit(1)).one_or_none()
        head = Head(0, genesis_hash(self._store.ledger_id))
        if last is not None:
            head = Head(last.position, EntryHash(bytes(last.hash)))
        sequence = refused_events.c.sequence
        refused = select(sequence, refused_events.c.hash).order_by(sequence.desc())
        last = connection.execute(refused.limit(1)).one_or_none()
        if last is not None:
            head = replace(head, refused_count=last.sequence, refused_hash=bytes(last.hash))
        self._head = head
        stored = connection.execute(select(price_versions.c.price_id)).scalars()
        self._stored_prices = frozenset(PriceId(price_id) for price_id in stored)

    def _run(self, connection: Connection) -> None:
        try:
            open_ = True
            while open_:
                group, open_ = self._next_group()
                if group:
                    self._record_group(connection, group)
        finally:
            connection.close()

    def _next_group(self) -> tuple[list[_Batch], bool]:
        """Waits for a batch, then takes those that wait behind it; False when told to stop."""
        group: list[_Batch] = []
        event_count = 0
        item = self._queue.get()
        while True:
            if item is None:
                return group, False
            if item.done.set_running_or_notify_cancel():
                group.append(item)
                event_count += len(item.submissions)
            if event_count >= GROUP_EVENTS_MAX:
                return group, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, True

    def _record_group(self, connection: Connection, group: Sequence[_Batch]) -> None:
        submissions = [submission for batch in group for submission in batch.submissions]
        try:
            outcomes = self._commit(connection, submissions)
        except Exception as error:
            self._fail(connection, group, error)
            return
        start = 0
        for batch in group:
            end = start + len(batch.submissions)
            batch.done.set_result(outcomes[start:end])
            start = end
        self._listener.committed(outcomes, len(group), self._head)

    def _commit(self, connection: Connection, submissions: Sequence[Submission]) -> list[Outcome]:
        with connection.begin():
            if self._doubtful:
                # Here, under the writer's lock: between two sessions another may have written.
                self._load(connection)
            transaction = Transaction(
                connection, self._head, self._book, self._stored_prices, self._clock_ns()
            )
            outcomes = transaction.append(submissions)
        self._doubtful = False
        self._head = transaction.head
        self._stored_prices |= transaction.new_prices.keys()
        return outcomes

    def _fail(self, connection: Connection, group: Sequence[_Batch], error: Exception) -> None:
        log.error("the ledger did not take %d batches", len(group), exc_info=error)
        # A commit that reported a failure may still have reached the disk: ask the disk.
        self._doubtful = True
        try:
            connection.rollback()
            self._store.read(self._load)
        except Exception as again:
            log.error("the ledger cannot be read either", exc_info=again)
        self._listener.failed(len(group))
        refusal: Exception
        if isinstance(error, DBAPIError):
            refusal = self._store.error(error)
            if not isinstance(refusal, LedgerUnavailableError):
                refusal = LedgerUnavailableError(str(refusal))
        elif isinstance(error, BillingError):
            refusal = LedgerUnavailableError(str(error))
        else:
            refusal = LedgerUnavailableError("the ledger could not record the events; send again")
        for batch in group:
            batch.done.set_exception(refusal)


def _check_book(connection: Connection, book: PriceBook) -> None:
    """A version that rated events must stay as it was."""
    stored = {row.name: row.price_id for row in connection.execute(select(price_versions))}
    for version in book.versions:
        if stored.get(version.name, version.id) != version.id:
            raise PriceBookError(
                f'price book version "{version.name}" rated events already and has changed since;'
                " put it back as it was and add a version with a later effective_time",
                version=version.name,
            )
