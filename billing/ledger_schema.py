"""Tables of the ledger, for SQLite now and PostgreSQL later.

    ledger_meta      format version and ledger id
    price_versions   every price book version that rated an event, by content hash
    entries          one per usage event, hash-chained
    postings         double entry: sum to zero per entry and currency
    refused_events   events that have no entry, as received

Invariant: rows are only ever added; triggers refuse UPDATE and DELETE. The columns of `entries`
beside `event` repeat it for queries, and `verify` compares them with it. Described in
docs/formats/ledger.md. Names and meanings are frozen under FORMAT_VERSION.
"""

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    case,
    event,
    func,
)
from sqlalchemy.types import Integer

__all__ = [
    "FORMAT_VERSION",
    "cache_write_tokens",
    "cache_write_ttl_class",
    "entries",
    "ledger_meta",
    "metadata",
    "postings",
    "price_versions",
    "refused_events",
    "trigger_names",
]

FORMAT_VERSION = 1
"""Frozen meaning: a file with a higher number is refused."""

metadata = MetaData()

# SQLite counts rows in "INTEGER" only; PostgreSQL needs 64 bits.
_Int64 = BigInteger().with_variant(Integer(), "sqlite")

ledger_meta = Table(
    "ledger_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_strict=True,
)

price_versions = Table(
    "price_versions",
    metadata,
    Column("price_id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("text", Text, nullable=False),
    sqlite_strict=True,
)

entries = Table(
    "entries",
    metadata,
    Column("position", _Int64, primary_key=True, autoincrement=False),
    Column("request_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("end_time_ns", _Int64, nullable=False),
    Column("hit_gpu", _Int64, nullable=False),
    Column("hit_host", _Int64, nullable=False),
    Column("hit_ssd", _Int64, nullable=False),
    Column("hit_shared", _Int64, nullable=False),
    Column("miss", _Int64, nullable=False),
    Column("output", _Int64, nullable=False),
    Column("event", Text, nullable=False),
    Column("price_id", Text, ForeignKey("price_versions.price_id")),
    Column("recorded_time_ns", _Int64, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    UniqueConstraint("request_id", name="entries_once_per_request"),
    Index("entries_by_tenant", "tenant_id", "end_time_ns"),
    Index("entries_by_time", "end_time_ns"),
    sqlite_strict=True,
)

postings = Table(
    "postings",
    metadata,
    Column("position", _Int64, ForeignKey("entries.position"), primary_key=True),
    Column("line", _Int64, primary_key=True),
    Column("account", Text, nullable=False),
    Column("token_class", Text, nullable=False),
    Column("quantity_tokens", _Int64, nullable=False),
    Column("amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

refused_events = Table(
    "refused_events",
    metadata,
    Column("content_hash", LargeBinary(32), primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_time_ns", _Int64, nullable=False),
    Column("wire", LargeBinary, nullable=False),
    sqlite_strict=True,
)


def _of_cache_write(field: str) -> ColumnElement[Any]:
    """A field of the event that few have, and that has no column: read from its text, which begins
    with it then. NULL where there is none. SQLite's function; PostgreSQL has `->>` for it."""
    begins = func.substr(entries.c.event, 1, len(_CACHE_WRITE)) == _CACHE_WRITE
    return case((begins, func.json_extract(entries.c.event, f"$.{field}")))


_CACHE_WRITE = '{"cache_write"'

cache_write_tokens = func.coalesce(_of_cache_write("cache_write"), 0)
"""Of an entry."""

cache_write_ttl_class = func.coalesce(_of_cache_write("cache_write_ttl_class"), "")
"""Their TTL class; "" without an end, or without such tokens."""

_KEPT = (ledger_meta, price_versions, entries, postings, refused_events)
_VERBS = ("update", "delete")


def trigger_names() -> frozenset[str]:
    """Names of the triggers that keep the ledger append-only."""
    return frozenset(f"{table.name}_no_{verb}" for table in _KEPT for verb in _VERBS)


for _table in _KEPT:
    for _verb in _VERBS:
        event.listen(
            _table,
            "after_create",
            DDL(  # type: ignore[no-untyped-call]
                f"CREATE TRIGGER {_table.name}_no_{_verb} BEFORE {_verb.upper()} ON {_table.name}"
                " BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
            ).execute_if(dialect="sqlite"),
        )
