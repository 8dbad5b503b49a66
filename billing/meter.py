"""The intake of one transaction: which events get an entry, and the rows of each.

    known, same content        DUPLICATE
    not acceptable             REJECTED     kept in refused_events
    known, other content       CONFLICT     kept in refused_events; the first one stands
    else                       ACCEPTED     entry and postings

Duplicates are recognised before anything is judged, so that an event once accepted is never
rejected later. Runs in the writer's transaction, on its thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from billing.budget_alert import Alert
from billing.correction import CORRECTION_PREFIX, Correction
from billing.entry import Entry, EntryHash
from billing.ledger_rows import insert_rows, insert_values, kept_refusals, known_requests
from billing.ledger_schema import entries, postings, price_versions, refused_events
from billing.money import to_text
from billing.price_book import PriceBook, PriceId, PriceVersion
from billing.rating import Posting, rate
from billing.refusals import REFUSED_GENESIS, RefusedLink, refusal_hash, storable
from billing.rollup import Rollups, add_rollups
from billing.standing import Standing
from billing.standing_rows import keep_changes
from billing.usage import (
    Refusal,
    UsageEvent,
    event_text,
    lookup_name,
    refusal_of,
    texts_of_before,
)

__all__ = [
    "Head",
    "Outcome",
    "RecordStatus",
    "Submission",
    "Transaction",
    "correction_row",
    "entry_row",
    "plain_row",
    "posting_rows",
]


class RecordStatus(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"


class Submission(NamedTuple):
    """An event as it came in."""

    event: UsageEvent
    received: "bytes | Received"

    @property
    def wire(self) -> bytes:
        """As received, with fields that this version does not know."""
        if isinstance(self.received, bytes):
            return self.received
        return self.received.SerializeToString()


class Received(Protocol):
    """A message, whose bytes are asked for only where its event is refused."""

    def SerializeToString(self) -> bytes: ...


class Outcome(NamedTuple):
    request_id: str
    status: RecordStatus
    reason: str = ""
    position: int = 0
    """Of the event's entry; 0 when it has none."""
    unrated: bool = False
    """Accepted, but no price book version covers it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The ends of the ledger's two chains."""

    position: int
    hash: EntryHash
    refused_count: int = 0
    refused_hash: bytes = REFUSED_GENESIS


class Transaction:
    """Builds the rows of one transaction and inserts them all at once. Used once."""

    def __init__(
        self,
        connection: Connection,
        head: Head,
        book: PriceBook,
        stored_prices: frozenset[PriceId],
        standing: Standing,
        now_ns: int,
    ) -> None:
        self.head = head
        self.new_prices: dict[PriceId, PriceVersion] = {}
        self.alerts: Sequence[Alert] = ()
        self._connection = connection
        self._book = book
        self._stored_prices = stored_prices
        self._standing = standing
        self._now_ns = now_ns
        self._known: dict[str, tuple[int, str]] = {}
        self._entries: list[tuple[Any, ...]] = []
        self._postings: list[tuple[Any, ...]] = []
        self._refused: dict[bytes, dict[str, Any]] = {}
        self._rollups = Rollups()

    def append(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Outcomes in the order of `submissions`; nothing is durable before the commit."""
        names = list(dict.fromkeys(submission.event.request_id for submission in submissions))
        for request_id, position, text in known_requests(self._connection, names):
            self._known[request_id] = (position, text)
        outcomes = [self._judge(submission) for submission in submissions]
        self._insert()
        return outcomes

    def _judge(self, submission: Submission) -> Outcome:
        event = submission.event
        text = event_text(event)
        known = self._known.get(event.request_id)
        if known is not None and (known[1] == text or known[1] in texts_of_before(event)):
            # An event that was sent before and after an upgrade says more the second time.
            return Outcome(event.request_id, RecordStatus.DUPLICATE, position=known[0])
        refusal = refusal_of(event, self._now_ns)
        if refusal is not None:
            self._refuse(submission, refusal)
            return Outcome(event.request_id, RecordStatus.REJECTED, refusal.value)
        if known is not None:
            self._refuse(submission, Refusal.OTHER_CONTENT)
            return Outcome(event.request_id, RecordStatus.CONFLICT, Refusal.OTHER_CONTENT.value)
        return self._enter(event, text)

    def _enter(self, event: UsageEvent, text: str) -> Outcome:
        assert event.end_time_ns is not None, "refusal_of lets no event without times pass"
        version = self._book.version_for(event.end_time_ns, event.model)
        if version is not None and version.id not in self._stored_prices:
            self.new_prices[version.id] = version
        entry = Entry(
            position=self.head.position + 1,
            recorded_time_ns=self._now_ns,
            event_text=text,
            price_id=version.id if version is not None else None,
            postings=rate(event, version),
        )
        head, amounts = self.head, [to_text(posting.amount) for posting in entry.postings]
        self.head = Head(
            entry.position,
            entry.hash_after(head.hash, amounts),
            head.refused_count,
            head.refused_hash,
        )
        self._entries.append(_entry_values(entry, event, self.head.hash))
        self._postings += _posting_values(entry.position, entry.postings, amounts)
        self._rollups.add(event, entry.price_id)
        self._standing.used(event, entry.postings, self._now_ns)
        self._known[event.request_id] = (entry.position, text)
        return Outcome(
            event.request_id,
            RecordStatus.ACCEPTED,
            position=entry.position,
            unrated=version is None,
        )

    def _refuse(self, submission: Submission, refusal: Refusal) -> None:
        content_hash = refusal_hash(refusal.value, submission.wire)
        self._refused[content_hash] = {
            "content_hash": content_hash,
            "request_id": storable(submission.event.request_id),
            "reason": refusal.value,
            "received_time_ns": self._now_ns,
            "wire": submission.wire,
        }

    def _insert(self) -> None:
        versions = [
            {"price_id": version.id, "name": version.name, "text": version.text}
            for version in self.new_prices.values()
        ]
        for kept in kept_refusals(self._connection, list(self._refused)):
            del self._refused[kept]
        self._chain_refused()
        if versions:
            insert_rows(self._connection, price_versions, versions)
        insert_values(self._connection, entries, self._entries)
        insert_values(self._connection, postings, self._postings)
        if self._refused:
            insert_rows(self._connection, refused_events, list(self._refused.values()))
        add_rollups(self._connection, self._rollups)
        self.alerts = keep_changes(self._connection, self._standing.take_changes())

    def _chain_refused(self) -> None:
        sequence, chain = self.head.refused_count, self.head.refused_hash
        for content_hash, row in self._refused.items():
            sequence += 1
            link = RefusedLink(
                sequence, content_hash, row["request_id"], row["reason"], row["received_time_ns"]
            )
            chain = link.hash_after(chain)
            row |= {"sequence": sequence, "hash": chain}
        self.head = replace(self.head, refused_count=sequence, refused_hash=chain)


def entry_row(entry: Entry, event: UsageEvent, entry_hash: EntryHash) -> dict[str, Any]:
    """The row of `entry` in the table of entries: every column follows from its content."""
    return dict(zip(_ENTRY_COLUMNS, _entry_values(entry, event, entry_hash), strict=True))


_ENTRY_COLUMNS = tuple(entries.columns.keys())


def _entry_values(entry: Entry, event: UsageEvent, entry_hash: EntryHash) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    tokens = event.tokens
    return (
        entry.position,
        event.request_id,
        event.tenant_id,
        event.model,
        event.end_time_ns,
        tokens.hit_gpu,
        tokens.hit_host,
        tokens.hit_ssd,
        tokens.hit_shared,
        tokens.miss,
        tokens.output,
        entry.event_text,
        entry.price_id,
        entry.recorded_time_ns,
        entry_hash,
        "usage",
        tokens.cache_write,
        tokens.cache_write_ttl_class,
        event.project_id,
        event.key_id,
        lookup_name(event.client_request_id),
        None,
    )


def correction_row(
    entry: Entry, correction: Correction, of: Any, entry_hash: EntryHash
) -> dict[str, Any]:
    """The same of a correction; `of` is the row of the entry that it corrects."""
    row = plain_row(
        entry,
        entry_hash,
        request_id=CORRECTION_PREFIX + correction.ask.correction_id,
        tenant_id=of.tenant_id,
        end_time_ns=correction.time_ns,
        kind="correction",
    )
    of_its_entry = {"model": of.model, "project_id": of.project_id, "key_id": of.key_id}
    return {**row, **of_its_entry, "corrects": correction.corrects}


def plain_row(entry: Entry, entry_hash: EntryHash, **said: Any) -> dict[str, Any]:
    """The same of an entry that is no event: it counts no tokens, and is `said` the rest."""
    return {
        "model": "",
        **dict.fromkeys(("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output"), 0),
        "position": entry.position,
        "event": entry.event_text,
        "price_id": entry.price_id,
        "recorded_time_ns": entry.recorded_time_ns,
        "hash": entry_hash,
        "cache_write": 0,
        "cache_write_ttl_class": "",
        "project_id": None,
        "key_id": None,
        "client_request_id": None,
        "corrects": None,
        **said,
    }


def posting_rows(position: int, lines: Sequence[Posting]) -> list[dict[str, Any]]:
    """Rows in the table of postings, numbered from 1."""
    amounts = [to_text(posting.amount) for posting in lines]
    return [
        dict(zip(_POSTING_COLUMNS, values, strict=True))
        for values in _posting_values(position, lines, amounts)
    ]


_POSTING_COLUMNS = tuple(postings.columns.keys())


def _posting_values(
    position: int, lines: Sequence[Posting], amounts: Sequence[str]
) -> list[tuple[Any, ...]]:
    """In the order of the table's columns; `amounts` as texts."""
    return [
        (position, line, p.account, p.token_class, p.quantity_tokens, amount, p.currency)
        for line, (p, amount) in enumerate(zip(lines, amounts, strict=True), 1)
    ]
