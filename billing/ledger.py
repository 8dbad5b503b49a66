"""The ledger's one writer: batches in, durable outcomes back.

    record() --> bounded queue --> writer thread: take what waits, one transaction, answer all
    correct(), fund(), set_budget(), decide(), checkpoint(), sign(), rotate_key() --> the same,
    a transaction each

Invariant: when a future has its outcomes, they are on the disk. When it has an error, sending the
batch again is safe and right. Batches that arrive while a commit is under way share the next one
(group commit), which is what makes many small calls cheap. The writer thread alone owns the
connection, the ends of the chains, the set of stored prices, the standing and the signer.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from billing.attestation_keeping import (
    AttestationOutcome,
    AttestationSubmission,
    keep_attestations,
)
from billing.budget import BudgetSet
from billing.budget_alert import Alert
from billing.budget_entries import SetDone, set_budget
from billing.checkpoint import Checkpoint, LedgerKey
from billing.correcting import Corrected, correct
from billing.correction import CorrectionAsk
from billing.entry import EntryHash, genesis_hash
from billing.errors import (
    BillingError,
    BudgetConflictError,
    BudgetRefusedError,
    CorrectionConflictError,
    CorrectionRefusedError,
    EventUnknownError,
    FundingConflictError,
    FundingRefusedError,
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerTooNewError,
    LedgerUnavailableError,
    PriceBookError,
)
from billing.funding_entries import Funded, FundingAsk, fund
from billing.ledger_listener import LedgerListener
from billing.ledger_queue import Batch, LedgerQueue, Order
from billing.ledger_schema import entries, price_versions, refused_events
from billing.ledger_signer import LedgerSigner
from billing.ledger_store import LedgerStore
from billing.meter import Head, Outcome, RecordStatus, Submission, Transaction
from billing.price_book import PriceBook, PriceId
from billing.standing import Standing
from billing.standing_rows import drop_old_spending, keep_changes, stored_standing
from billing.storage_entries import enter_storage

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

Message = Callable[[Connection, Sequence[LedgerKey], int], bytes]

CLOSE_SECONDS_MAX = 30.0

_OF_THE_DATABASE = (LedgerReadOnlyError, LedgerForeignError, LedgerLockedError, LedgerTooNewError)
"""Told as LEDGER_UNAVAILABLE to who sends events: sending again is right."""

_REFUSED = (
    *(BudgetConflictError, BudgetRefusedError, CorrectionConflictError, CorrectionRefusedError),
    *(EventUnknownError, FundingConflictError, FundingRefusedError),
)
"""Said before anything is written: what is known is still what is stored."""


class Ledger:
    """Takes events, each once for ever. One per process; `close` before the store's."""

    def __init__(
        self,
        store: LedgerStore,
        book: PriceBook,
        clock_ns: Callable[[], int],
        listener: LedgerListener,
        signer: LedgerSigner | None = None,
        hold_grace_seconds: float = 900.0,
    ) -> None:
        """Starts the writer; without `signer` there are no checkpoints. `hold_grace_seconds`: how
        long behind a request's deadline its event is waited for.

        Raises LedgerKeyError, and PriceBookError when `book` changed a version that was used.
        """
        self._store = store
        self._book = book
        self._clock_ns = clock_ns
        self._listener = listener
        self._signer = signer
        self._stored_prices: frozenset[PriceId] = frozenset()
        self._head = Head(0, genesis_hash(store.ledger_id))
        self._grace_ns = round(hold_grace_seconds * 1e9)
        store.read(lambda connection: _check_book(connection, book))
        store.read(self._load)
        self._doubtful = False  # a commit failed: what is stored may be more than what is known
        self._queue = LedgerQueue()
        connection = store.writer()
        try:
            if signer is not None:
                with connection.begin():
                    signer.prepare(connection, clock_ns())
        except DBAPIError as error:
            connection.close()
            raise store.error(error) from error
        except BaseException:
            connection.close()
            raise
        self._thread = threading.Thread(
            target=self._run, args=(connection,), name="ledger-writer", daemon=True
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
        self._queue.put(Batch(submissions, done))
        return done

    def correct(self, ask: CorrectionAsk) -> "Future[Corrected]":
        """Adds a correction, once per its id; the future may also fail with
        CorrectionRefusedError, CorrectionConflictError and EventUnknownError.
        """
        return self._order(lambda connection: self._correct(connection, ask))

    def fund(self, ask: FundingAsk) -> "Future[Funded]":
        """Adds a funding, once per its id; the future may also fail with FundingRefusedError and
        FundingConflictError.
        """
        return self._order(lambda connection: self._fund(connection, ask))

    def attest(
        self, submissions: Sequence[AttestationSubmission]
    ) -> "Future[list[AttestationOutcome]]":
        """Keeps attestations, each once by its id, and adds an entry for each of storage; the
        future has the outcomes once durable.
        """
        return self._order(lambda connection: self._attest(connection, submissions))

    def set_budget(self, made: BudgetSet) -> "Future[SetDone]":
        """Adds a budget, once per its id, at the time of the ledger's clock; the future may also
        fail with BudgetRefusedError and BudgetConflictError.
        """
        return self._order(lambda connection: self._set_budget(connection, made))

    def decide(self, call: Callable[[Connection, Standing, int], Result]) -> "Future[Result]":
        """Runs `call` with how everybody stands and the time; what it changes is durable when the
        future is done. An error of `call` undoes it.
        """
        return self._order(lambda connection: self._decide(connection, call))

    def checkpoint(self) -> "Future[Checkpoint]":
        """One that covers everything recorded before this call; a new one only where the last does
        not. Raises LedgerUnavailableError, as its future may.
        """
        return self._order(self._newest_checkpoint)

    def rotate_key(self) -> "Future[LedgerKey]":
        """A new key, which signs from now on; the one before vouches for it."""
        return self._order(self._succeed_key)

    def sign(self, message: Message) -> "Future[bytes]":
        """The signature of the key that signs now, 64 bytes, over what `message` makes of what is
        recorded, of the keys up to that one and of the time."""
        return self._order(lambda connection: self._sign(connection, message))

    @property
    def keys(self) -> Sequence[LedgerKey]:
        """Oldest first."""
        return self._signer.keys if self._signer is not None else ()

    def _order(self, call: Callable[[Connection], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        self._queue.put(Order(call, done))
        return done

    def close(self) -> None:
        """Records what is queued, then stops the writer. Idempotent."""
        self._queue.close()
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
        self._standing = Standing(
            stored_standing(connection), self._book, self._store.read, self._grace_ns
        )

    def _run(self, connection: Connection) -> None:
        try:
            last = False
            while not last:
                work = self._queue.take(self._patience())
                if work.group:
                    self._record_group(connection, work.group)
                if work.order is not None:
                    self._carry_out(connection, work.order)
                elif not work.group:
                    self._checkpoint_when_behind(connection)
                last = work.last
            self._checkpoint_when_behind(connection)
        finally:
            connection.close()

    def _patience(self) -> float | None:
        """How long to wait for a batch: while no checkpoint covers the end, not for ever."""
        if self._signer is None or not self._signer.behind(self._head):
            return None
        return self._signer.rule.seconds

    def _carry_out(self, connection: Connection, order: Order) -> None:
        try:
            result = order.call(connection)
        except Exception as error:
            order.done.set_exception(self._refusal(connection, error))
            return
        order.done.set_result(result)

    def _correct(self, connection: Connection, ask: CorrectionAsk) -> Corrected:
        with self._transaction(connection):
            made = correct(
                connection, self._head, self._book, self._stored_prices, ask, self._clock_ns()
            )
            if not made.again:
                said = (made.project_id, made.key_id)
                self._standing.corrected(made.correction, *said, self._clock_ns())
            alerts = self._keep(connection)
        self._listener.alerted(alerts, len(self._standing.holds))
        self._head = made.head
        if made.new_price is not None:
            self._stored_prices |= {made.new_price.id}
        return made

    def _fund(self, connection: Connection, ask: FundingAsk) -> Funded:
        now_ns = self._clock_ns()
        with self._transaction(connection):
            self._standing.check_withdrawal(ask, now_ns)
            made = fund(connection, self._head, self._standing.wallets, ask, now_ns)
            self._keep(connection)
        self._head = made.head
        return made

    def _attest(
        self, connection: Connection, submissions: Sequence[AttestationSubmission]
    ) -> list[AttestationOutcome]:
        with self._transaction(connection):
            now_ns = self._clock_ns()
            outcomes = keep_attestations(connection, submissions, now_ns)
            accepted = [
                each.said
                for each, outcome in zip(submissions, outcomes, strict=True)
                if outcome.status is RecordStatus.ACCEPTED
            ]
            made = enter_storage(
                connection,
                self._head,
                self._book,
                self._stored_prices,
                self._standing,
                accepted,
                now_ns,
            )
            alerts = self._keep(connection)
        self._head = made.head
        self._stored_prices |= made.new_prices
        self._listener.alerted(alerts, len(self._standing.holds))
        return outcomes

    def _set_budget(self, connection: Connection, asked: BudgetSet) -> SetDone:
        with self._transaction(connection):
            now_ns = self._clock_ns()
            done = set_budget(connection, self._head, replace(asked, time_ns=now_ns))
            if not done.again:
                self._standing.budget_set(done.made.budget, done.position)
            self._keep(connection)
            drop_old_spending(connection, now_ns)
        self._head = done.head
        return done

    def _decide(
        self, connection: Connection, call: Callable[[Connection, Standing, int], Result]
    ) -> Result:
        with self._transaction(connection):
            result = call(connection, self._standing, self._clock_ns())
            alerts = self._keep(connection)
        self._listener.alerted(alerts, len(self._standing.holds))
        return result

    def _keep(self, connection: Connection) -> Sequence[Alert]:
        return keep_changes(connection, self._standing.take_changes())

    def _checkpoint_when_behind(self, connection: Connection) -> None:
        if self._signer is None or not self._signer.behind(self._head):
            return
        try:
            self._newest_checkpoint(connection)
        except Exception as error:
            self._refusal(connection, error)
            self._listener.failed(0)

    def _newest_checkpoint(self, connection: Connection) -> Checkpoint:
        assert self._signer is not None, "who asks for one knows that there is a signer"
        with self._transaction(connection):
            made = self._signer.last
            if made is None or self._signer.behind(self._head):
                made = self._signer.sign(connection, self._head, self._clock_ns())
        self._signer.committed(made)
        return made

    def _sign(self, connection: Connection, message: Message) -> bytes:
        assert self._signer is not None, "who asks for one knows that there is a signer"
        with self._transaction(connection):
            made = message(connection, self._signer.keys, self._clock_ns())
            return self._signer.sign_bytes(made)

    def _succeed_key(self, connection: Connection) -> LedgerKey:
        assert self._signer is not None, "who asks for one knows that there is a signer"
        with self._transaction(connection):
            successor = self._signer.name_successor(connection, self._clock_ns())
        self._signer.succeed(successor)
        return self._signer.keys[-1]

    @contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        with connection.begin():
            if self._doubtful:
                # Here, under the writer's lock: between two sessions another may have written.
                self._load(connection)
                if self._signer is not None:
                    self._signer.prepare(connection, self._clock_ns())
            yield
        self._doubtful = False

    def _record_group(self, connection: Connection, group: Sequence[Batch]) -> None:
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
        signed: Checkpoint | None = None
        with self._transaction(connection):
            now_ns = self._clock_ns()
            transaction = Transaction(
                connection, self._head, self._book, self._stored_prices, self._standing, now_ns
            )
            outcomes = transaction.append(submissions)
            if self._signer is not None and self._signer.due(transaction.head, now_ns):
                signed = self._signer.sign(connection, transaction.head, now_ns)
        self._head = transaction.head
        self._stored_prices |= transaction.new_prices.keys()
        self._listener.alerted(transaction.alerts, len(self._standing.holds))
        if self._signer is not None and signed is not None:
            self._signer.committed(signed)
        return outcomes

    def _fail(self, connection: Connection, group: Sequence[Batch], error: Exception) -> None:
        refusal = self._refusal(connection, error)
        log.error("the ledger did not take %d batches: %s", len(group), refusal)
        self._listener.failed(len(group))
        for batch in group:
            batch.done.set_exception(refusal)

    def _refusal(self, connection: Connection, error: Exception) -> Exception:
        """What to answer; afterwards the next transaction starts from what is stored, where that
        may be something else than what is known.
        """
        if isinstance(error, _REFUSED):
            return error
        # A commit that reported a failure may still have reached the disk: ask the disk.
        self._doubtful = True
        try:
            connection.rollback()
            self._store.read(self._load)
        except Exception as again:
            # What the store has words for needs no traceback.
            unforeseen = None if isinstance(again, BillingError | DBAPIError) else again
            log.error("the ledger cannot be read either: %s", again, exc_info=unforeseen)
        if isinstance(error, DBAPIError):
            refusal: Exception = self._store.error(error)
        elif isinstance(error, BillingError):
            refusal = error
        else:
            log.error("the ledger's writer failed", exc_info=error)
            refusal = LedgerUnavailableError("the ledger could not do it; send again")
        told = not isinstance(refusal, _OF_THE_DATABASE)
        return refusal if told else LedgerUnavailableError(str(refusal))


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
