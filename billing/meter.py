"""The intake of one transaction: which events get an entry, and the rows of each.

    known, same content        DUPLICATE
    not acceptable             REJECTED     kept in refused_events
    known, other content       CONFLICT     kept in refused_events; the first one stands
    else                       ACCEPTED     entry and postings

Duplicates are recognised before anything is judged, so that an event once accepted is never
rejected later. Runs in the writer's transaction, on its thread.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Table, select

from billing.entry import Entry, EntryHash
from billing.ledger_schema import entries, postings, price_versions, refused_events
from billing.money import to_text
from billing.price_book import PriceBook, PriceId, PriceVersion
from billing.rating import Posting, rate
from billing.usage import Refusal, UsageEvent, event_text, refusal_of

__all__ = [
    "Head",
    "Outcome",
    "RecordStatus",
    "Submission",
    "Transaction",
    "entry_row",
    "posting_rows",
    "refusal_hash",
]

_LOOKUP_MAX = 900
"""Names in one query: below the oldest limit of SQLite on parameters."""


class RecordStatus(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Submission:
    """An event as it came in."""

    event: UsageEvent
    wire: bytes
    """As received, with fields that this version does not know."""


@dataclass(frozen=True, slots=True)
class Outcome:
    request_id: str
    status: RecordStatus
    reason: str = ""
    position: int = 0
    """Of the event's entry; 0 when it has none."""
    unrated: bool = False
    """Accepted, but no price book version covers it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain."""

    position: int
    hash: EntryHash


class Transaction:
    """Builds the rows of one transaction and inserts them all at once. Used once."""

    def __init__(
        self,
        connection: Connection,
        head: Head,
        book: PriceBook,
        stored_prices: frozenset[PriceId],
        now_ns: int,
    ) -> None:
        self.head = head
        self.new_prices: dict[PriceId, PriceVersion] = {}
        self._connection = connection
        self._book = book
        self._stored_prices = stored_prices
        self._now_ns = now_ns
        self._known: dict[str, tuple[int, str]] = {}
        self._entries: list[dict[str, Any]] = []
        self._postings: list[dict[str, Any]] = []
        self._refused: dict[bytes, dict[str, Any]] = {}

    def append(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Outcomes in the order of `submissions`; nothing is durable before the commit."""
        self._look_up(submission.event.request_id for submission in submissions)
        outcomes = [self._judge(submission) for submission in submissions]
        self._insert()
        return outcomes

    def _look_up(self, request_ids: Iterable[str]) -> None:
        names = list(dict.fromkeys(request_ids))
        for start in range(0, len(names), _LOOKUP_MAX):
            query = select(entries.c.request_id, entries.c.position, entries.c.event).where(
                entries.c.request_id.in_(names[start : start + _LOOKUP_MAX])
            )
            for request_id, position, text in self._connection.execute(query):
                self._known[request_id] = (position, text)

    def _judge(self, submission: Submission) -> Outcome:
        event = submission.event
        text = event_text(event)
        known = self._known.get(event.request_id)
        if known is not None and known[1] == text:
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
        self.head = Head(entry.position, entry.hash_after(self.head.hash))
        self._entries.append(entry_row(entry, event, self.head.hash))
        self._postings += posting_rows(entry.position, entry.postings)
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
            "request_id": submission.event.request_id,
            "reason": refusal.value,
            "received_time_ns": self._now_ns,
            "wire": submission.wire,
        }

    def _insert(self) -> None:
        versions = [
            {"price_id": version.id, "name": version.name, "text": version.text}
            for version in self.new_prices.values()
        ]
        hashes = list(self._refused)
        for start in range(0, len(hashes), _LOOKUP_MAX):
            some = hashes[start : start + _LOOKUP_MAX]
            query = select(refused_events.c.content_hash).where(
                refused_events.c.content_hash.in_(some)
            )
            for (kept,) in self._connection.execute(query):
                del self._refused[kept]
        for table, rows in (
            (price_versions, versions),
            (entries, self._entries),
            (postings, self._postings),
            (refused_events, list(self._refused.values())),
        ):
            if rows:
                _insert(self._connection, table, rows)


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Adds rows that have every column. Past SQLAlchemy's handling of each parameter of each row,
    which is a third of a transaction's time; all values are of the driver's own types."""
    statement = table.insert().compile(connection)
    names = statement.positiontup
    values: Any = [tuple(row[name] for name in names) for row in rows] if names else list(rows)
    connection.exec_driver_sql(str(statement), values)


def entry_row(entry: Entry, event: UsageEvent, entry_hash: EntryHash) -> dict[str, Any]:
    """The row of `entry` in the table of entries: every column follows from its content."""
    return {
        "position": entry.position,
        "request_id": event.request_id,
        "tenant_id": event.tenant_id,
        "model": event.model,
        "end_time_ns": event.end_time_ns,
        "hit_gpu": event.tokens.hit_gpu,
        "hit_host": event.tokens.hit_host,
        "hit_ssd": event.tokens.hit_ssd,
        "hit_shared": event.tokens.hit_shared,
        "miss": event.tokens.miss,
        "output": event.tokens.output,
        "event": entry.event_text,
        "price_id": entry.price_id,
        "recorded_time_ns": entry.recorded_time_ns,
        "hash": entry_hash,
    }


def posting_rows(position: int, lines: Sequence[Posting]) -> list[dict[str, Any]]:
    """Rows in the table of postings, numbered from 1."""
    return [
        {
            "position": position,
            "line": line,
            "account": posting.account,
            "token_class": posting.token_class,
            "quantity_tokens": posting.quantity_tokens,
            "amount": to_text(posting.amount),
            "currency": posting.currency,
        }
        for line, posting in enumerate(lines, 1)
    ]


def refusal_hash(reason: str, wire: bytes) -> bytes:
    """Names a refused event, so that sending it again keeps it once."""
    return hashlib.sha256(f"{reason}\n".encode() + wire).digest()
