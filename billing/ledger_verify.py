"""Verification: walks the whole ledger and recomputes everything that can be recomputed.

For each entry, from its stored event and price version alone: the position follows, the columns
repeat the event, rating gives exactly the stored postings, these sum to zero, and the hash
continues the chain. Beside the chain: the append-only triggers are there, kept refusals match their
hash and are in their chain, checkpoints and keys are signed and say what the chains say, and
nothing is missing at the end that was committed before the walk or that a checkpoint covers; and
rollups and wallets are what the entries leave.
Changes nothing; runs on a reader's thread over one snapshot.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, Connection, RowMapping, Table, func, select
from sqlalchemy.exc import DBAPIError

from billing.budget import BUDGET_KIND, budget_from_text
from billing.budget_entries import budget_entry, budget_row
from billing.checkpoint_check import CheckpointWalk, Trust, key_problem
from billing.correcting import amount_asked, still_owed
from billing.correction import (
    Correction,
    CorrectionKind,
    correction_from_text,
    plain_postings,
)
from billing.entry import Entry, genesis_hash
from billing.funding import FUNDING_KINDS
from billing.funding_entries import funding_entry, funding_row
from billing.ledger_guards import missing_guards
from billing.ledger_postings import BrokenError, StoredPostings, check_postings
from billing.ledger_schema import (
    FORMAT_VERSION,
    KEPT_TABLES,
    checkpoints,
    entries,
    ledger_keys,
    ledger_meta,
    postings,
    price_versions,
    refused_events,
    rollups,
)
from billing.ledger_signer import checkpoint_of, stored_keys
from billing.meter import Head, correction_row, entry_row
from billing.money import ZERO
from billing.price_book import PriceId, PriceVersion, version_from_text
from billing.rating import Posting, rate
from billing.refusals import RefusedLink, refusal_hash
from billing.rollup import ROLLUP_KEYS, Rollups
from billing.storage_entries import storage_entry, storage_row
from billing.storage_rating import STORAGE_KIND, storage_of_text
from billing.usage import event_from_text, refusal_of
from billing.wallet_check import funding_problem, wallet_problem
from billing.wallets import Wallets
from kvtier.serving import ShuttingDownError

__all__ = ["Verification", "verify_ledger"]

_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Verification:
    """What a walk found. Counts are of what was there to walk; `head` is the last good entry's."""

    entry_count: int
    posting_count: int
    unrated_count: int
    refused_count: int
    checkpoint_count: int
    head: Head
    broken_position: int
    """First entry that does not hold; 0 when all do."""
    problem: str
    """Empty when the ledger holds."""


def verify_ledger(
    connection: Connection,
    committed: Head,
    stopping: Callable[[], bool] = lambda: False,
    trust: Trust | None = None,
) -> Verification:
    """Walks the snapshot of `connection`. REQUIRES: `committed` was read before it began.
    `trust`: what was noted elsewhere, to hold it against.

    Raises ShuttingDownError soon after `stopping` says so: a walk may take minutes.
    """
    trust = trust or Trust()
    walk = _Walk(connection, _ROWS_AT_ONCE, stopping, trust)
    position, problem = 0, ""
    try:
        try:
            walk.run(committed)
        except DBAPIError:
            # A row that cannot be read takes the rows fetched with it along: go one by one.
            walk = _Walk(connection, 1, stopping, trust)
            walk.run(committed)
    except BrokenError as broken:
        position, problem = broken.position, str(broken)
    except DBAPIError as error:
        position, problem = walk.head.position + 1, f"cannot be read: {error.orig}"
    return Verification(
        entry_count=_count(connection, entries),
        posting_count=_count(connection, postings),
        unrated_count=walk.unrated_count,
        refused_count=_count(connection, refused_events),
        checkpoint_count=walk.checkpoint_count,
        head=walk.head,
        broken_position=position,
        problem=problem,
    )


class _Walk:
    """One pass over the ledger. `head` is the last entry that holds."""

    def __init__(
        self,
        connection: Connection,
        rows_at_once: int,
        stopping: Callable[[], bool],
        trust: Trust,
    ) -> None:
        self._connection = connection
        self._stopping = stopping
        self._rows_at_once = rows_at_once
        self._meta = {row.key: row.value for row in connection.execute(select(ledger_meta))}
        self.head = Head(0, genesis_hash(self._meta.get("ledger_id", "")))
        self.unrated_count = 0
        self.checkpoint_count = 0
        self._rollups = Rollups()
        self._wallets = Wallets()
        self._trust = trust
        self._signed: CheckpointWalk | None = None
        self._signed_problem = ""
        self._versions: dict[PriceId, PriceVersion | None] = {}

    def run(self, committed: Head) -> None:
        with ExitStack() as self._results:
            self._run(committed)

    def _run(self, committed: Head) -> None:
        self._load_versions()
        self._load_signed()
        lines = StoredPostings(self._rows(postings, postings.c.position, postings.c.line))
        for row in self._rows(entries, entries.c.position):
            if self._stopping():
                raise ShuttingDownError("the service stops before the ledger was walked to its end")
            self._check(row, lines.of(row["position"], self.head.position + 1))
            if self.head.position == committed.position and self.head.hash != committed.hash:
                raise BrokenError(self.head.position, "is not the entry that was committed there")
            self._hold_against_checkpoints()
        if self.head.position < committed.position:
            raise BrokenError(
                self.head.position + 1, "is missing: entries were cut off the ledger's end"
            )
        lines.finish(self.head.position + 1)
        self._finish_signed()
        self._check_versions()
        self._check_meta()
        self._check_rollups()
        if problem := wallet_problem(self._connection, self._wallets):
            raise BrokenError(0, problem)
        self._check_guards()
        self._check_refusals(committed)

    def _load_versions(self) -> None:
        for row in self._connection.execute(select(price_versions)):
            try:
                version = version_from_text(row.text)
            except ValueError:
                version = None
            holds = version is not None and (version.id, version.name) == (row.price_id, row.name)
            self._versions[PriceId(row.price_id)] = version if holds else None

    def _load_signed(self) -> None:
        """Keys and checkpoints; what is wrong with them is told when the entries are walked."""
        ledger_id = self._meta.get("ledger_id", "")
        keys = stored_keys(self._connection)
        key_ids = self._connection.execute(
            select(ledger_keys.c.key_id).order_by(ledger_keys.c.number)
        ).scalars()
        stored = [
            checkpoint_of(dict(row), ledger_id)
            for row in self._connection.execute(
                select(checkpoints).order_by(checkpoints.c.number)
            ).mappings()
        ]
        self.checkpoint_count = len(stored)
        signed = CheckpointWalk(stored, keys, self._trust, ledger_id)
        self._signed_problem = (
            key_problem(keys, list(key_ids), ledger_id, self._trust) or signed.problem()
        )
        self._signed = None if self._signed_problem else signed

    def _hold_against_checkpoints(self) -> None:
        if self._signed is not None and (problem := self._signed.passed(self.head)):
            raise BrokenError(self._signed.good_position + 1, problem)

    def _finish_signed(self) -> None:
        if self._signed_problem:
            raise BrokenError(0, self._signed_problem)
        if problem := self._signed.entries_cut(self.head) if self._signed else "":
            raise BrokenError(self.head.position + 1, problem)

    def _check(self, row: RowMapping, stored: list[dict[str, Any]]) -> None:
        position = self.head.position + 1
        if row["position"] != position:
            raise BrokenError(position, f"is missing: position {row['position']} follows")
        if row["kind"] in FUNDING_KINDS:
            self._check_funding(row, stored)
            return
        if row["kind"] == BUDGET_KIND:
            self._check_budget(row, stored)
            return
        if row["kind"] == STORAGE_KIND:
            self._check_storage(row, stored)
            return
        if row["kind"] != "usage":
            self._check_correction(row, stored)
            return
        try:
            event = event_from_text(row["event"])
        except ValueError as error:
            raise BrokenError(position, str(error)) from None
        refusal = refusal_of(event, row["recorded_time_ns"])
        if refusal is not None or event.end_time_ns is None:
            raise BrokenError(position, f"its event is not acceptable: {refusal}")
        version = self._version(position, row["price_id"], event.end_time_ns)
        rated = rate(event, version)
        check_postings(position, rated, stored)
        entry = Entry(position, row["recorded_time_ns"], row["event"], row["price_id"], rated)
        entry_hash = entry.hash_after(self.head.hash)
        self._accept(row, entry_row(entry, event, entry_hash))
        self._rollups.add(event, row["price_id"])
        if rated:
            owed = rated[0]
            self._wallets.used(event.tenant_id, owed.currency, owed.amount, event.end_time_ns)
        self.unrated_count += version is None

    def _check_correction(self, row: RowMapping, stored: list[dict[str, Any]]) -> None:
        position = self.head.position + 1
        try:
            correction = correction_from_text(row["event"])
        except (ValueError, ArithmeticError) as error:
            raise BrokenError(position, str(error)) from None
        of = self._connection.execute(
            select(entries).where(entries.c.position == correction.corrects)
        ).one_or_none()
        if of is None or of.kind != "usage" or of.position >= position:
            raise BrokenError(position, "it corrects no entry before it")
        said = (correction.ask.request_id, correction.tenant_id, correction.time_ns)
        if said != (of.request_id, of.tenant_id, row["recorded_time_ns"]):
            raise BrokenError(position, "it is not of the entry that it corrects")
        rated = self._correction_postings(position, row, of, correction)
        check_postings(position, rated, stored)
        entry = Entry(position, row["recorded_time_ns"], row["event"], row["price_id"], rated)
        self._accept(row, correction_row(entry, correction, of, entry.hash_after(self.head.hash)))
        self._wallets.corrected(correction)

    def _check_storage(self, row: RowMapping, stored: list[dict[str, Any]]) -> None:
        position = self.head.position + 1
        try:
            said = storage_of_text(row["event"])
        except (ValueError, ArithmeticError) as error:
            raise BrokenError(position, str(error)) from None
        assert said.storage is not None
        version = self._version(position, row["price_id"], said.start_time_ns)
        entry = storage_entry(said, position, row["recorded_time_ns"], version)
        check_postings(position, entry.postings, stored)
        self._accept(row, storage_row(entry, said, entry.hash_after(self.head.hash)))
        if entry.postings:
            owed, tenant_id = entry.postings[0], said.storage.tenant_id
            self._wallets.used(tenant_id, owed.currency, owed.amount, said.start_time_ns)

    def _check_budget(self, row: RowMapping, stored: list[dict[str, Any]]) -> None:
        position = self.head.position + 1
        try:
            made = budget_from_text(row["event"])
        except (ValueError, ArithmeticError) as error:
            raise BrokenError(position, str(error)) from None
        if made.time_ns != row["recorded_time_ns"]:
            raise BrokenError(position, "its time is not when it was recorded")
        entry = budget_entry(made, position, made.time_ns)
        check_postings(position, entry.postings, stored)
        self._accept(row, budget_row(entry, made, entry.hash_after(self.head.hash)))

    def _check_funding(self, row: RowMapping, stored: list[dict[str, Any]]) -> None:
        position = self.head.position + 1
        problem, funding = funding_problem(row, position, self._wallets)
        if funding is None:
            raise BrokenError(position, problem)
        entry = funding_entry(funding, position, row["recorded_time_ns"])
        check_postings(position, entry.postings, stored)
        self._accept(row, funding_row(entry, funding, entry.hash_after(self.head.hash)))

    def _correction_postings(
        self, position: int, row: RowMapping, of: Any, correction: Correction
    ) -> tuple[Posting, ...]:
        currency, owed = still_owed(self._connection, correction.corrects, before=position)
        if correction.ask.kind is CorrectionKind.SETTLE:
            version = self._version(position, row["price_id"], of.end_time_ns)
            if version is None or currency:
                raise BrokenError(position, "it settles an entry that had a price")
            try:
                rated = rate(event_from_text(of.event), version)
            except ValueError as error:
                raise BrokenError(correction.corrects, str(error)) from None
            if correction.amount != (rated[0].amount if rated else ZERO):
                raise BrokenError(position, "its amount is not what rating the event gives")
            return rated
        if row["price_id"] is not None or correction.currency != currency:
            raise BrokenError(position, "it is not in the currency of its entry")
        if amount_asked(correction.ask, owed) != correction.amount:
            raise BrokenError(position, "its amount is not what was asked for")
        return plain_postings(correction)

    def _accept(self, row: RowMapping, follows: dict[str, Any]) -> None:
        """Takes the entry as good when its row is what `follows` from its content."""
        position = self.head.position + 1
        for column, value in follows.items():
            if row[column] != value:
                what = "hash does not continue the chain" if column == "hash" else "differs"
                raise BrokenError(position, f"its {column} {what}: the entry was changed")
        self.head = replace(self.head, position=position, hash=follows["hash"])

    def _version(self, position: int, price_id: str | None, time_ns: int) -> PriceVersion | None:
        if price_id is None:
            return None
        version = self._versions.get(PriceId(price_id))
        if version is None:
            raise BrokenError(position, "the price version that rated it is missing or changed")
        if version.effective_time_ns > time_ns:
            raise BrokenError(position, "it was rated with a price version from after its time")
        return version

    def _check_versions(self) -> None:
        for price_id, version in self._versions.items():
            if version is None:
                raise BrokenError(0, f"the stored price version {price_id[:16]} was changed")

    def _check_rollups(self) -> None:
        made = {tuple(row[name] for name in ROLLUP_KEYS): row for row in self._rollups.rows()}
        for row in self._rows(rollups, rollups.c.hour):
            key = tuple(row[name] for name in ROLLUP_KEYS)
            if dict(row) != made.pop(key, None):
                raise BrokenError(0, f"the rollup of {key} is not what the entries add up to")
        if made:
            raise BrokenError(0, f"the rollup of {min(made)} is missing")

    def _check_meta(self) -> None:
        version = self._meta.get("format_version", "")
        if version != str(FORMAT_VERSION):
            raise BrokenError(0, f'the format version was changed to "{version}"')

    def _check_guards(self) -> None:
        missing = missing_guards(self._connection, KEPT_TABLES)
        if missing:
            raise BrokenError(0, f"triggers that keep the ledger append-only are gone: {missing}")

    def _check_refusals(self, committed: Head) -> None:
        for row in self._rows(refused_events, refused_events.c.sequence):
            name, sequence = row["request_id"], self.head.refused_count + 1
            if refusal_hash(row["reason"], row["wire"]) != row["content_hash"]:
                raise BrokenError(0, f"the refused event {name} was changed")
            if row["sequence"] != sequence:
                raise BrokenError(0, f"refused event {sequence} is missing")
            link = RefusedLink(
                sequence, bytes(row["content_hash"]), name, row["reason"], row["received_time_ns"]
            )
            chain = link.hash_after(self.head.refused_hash)
            if row["hash"] != chain:
                raise BrokenError(0, f"refused event {sequence}, {name}, was changed")
            self.head = replace(self.head, refused_count=sequence, refused_hash=chain)
            if problem := self._signed.refused_passed(self.head) if self._signed else "":
                raise BrokenError(0, problem)
        if self.head.refused_count < committed.refused_count:
            raise BrokenError(0, "refused events were cut off the end")
        if problem := self._signed.others_cut(self.head) if self._signed else "":
            raise BrokenError(0, problem)

    def _rows(self, table: Table, *order: Column[Any]) -> Iterator[RowMapping]:
        query = select(table).order_by(*order)
        connection = self._connection.execution_options(yield_per=self._rows_at_once)
        result = connection.execute(query)
        self._results.callback(result.close)
        yield from result.mappings()


def _count(connection: Connection, table: Table) -> int:
    try:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())
    except DBAPIError:
        return 0
