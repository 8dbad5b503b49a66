"""Tables of the ledger, one text for SQLite and PostgreSQL.

    ledger_meta      format version and ledger id
    price_versions   every price book version that rated an event, by content hash
    entries          one per usage event, correction, funding or budget, hash-chained
    postings         double entry: sum to zero per entry and currency
    refused_events   events that have no entry, as received, in a hash chain of their own
    ledger_keys      public keys that sign checkpoints, each signed by the one before
    checkpoints      signed statements of how far the chains were at a time
    attestations     what cache services say that each lease served, as received
    refused_attestations   those that contradict one that is there, or make no sense
    rollups          sums of the entries by hour; follow from them
    wallets          what fundings and charges left of each tenant's balance; follow from them
    holds            what requests under way may still cost
    budget_spend     what a limit's day or month has cost so far
    budget_alerts    thresholds that were passed, once each

Invariant: rows are only ever added, but for the last five tables; triggers (`ledger_guards`)
refuse every change. The columns of `entries` beside `event` repeat it for queries, and `verify`
compares them with it. Described in docs/formats/ledger.md. Names and meanings are frozen under
FORMAT_VERSION; what makes these tables is `migrations/`, and a test holds the two to each other.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import Integer

__all__ = [
    "EVIDENCE_TABLES",
    "FORMAT_VERSION",
    "KEPT_TABLES",
    "UNKNOWN",
    "Int64",
    "attestations",
    "budget_alerts",
    "budget_spend",
    "checkpoints",
    "entries",
    "holds",
    "ledger_keys",
    "ledger_meta",
    "metadata",
    "postings",
    "price_versions",
    "refused_attestations",
    "refused_events",
    "rollups",
    "wallets",
]

FORMAT_VERSION = 6
"""Frozen meaning: a ledger with a higher number is refused."""

metadata = MetaData()

# SQLite counts rows in "INTEGER" only; PostgreSQL needs 64 bits.
Int64 = BigInteger().with_variant(Integer(), "sqlite")

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
    Column("position", Int64, primary_key=True, autoincrement=False),
    Column("request_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("end_time_ns", Int64, nullable=False),
    Column("hit_gpu", Int64, nullable=False),
    Column("hit_host", Int64, nullable=False),
    Column("hit_ssd", Int64, nullable=False),
    Column("hit_shared", Int64, nullable=False),
    Column("miss", Int64, nullable=False),
    Column("output", Int64, nullable=False),
    Column("event", Text, nullable=False),
    Column("price_id", Text, ForeignKey("price_versions.price_id")),
    Column("recorded_time_ns", Int64, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("kind", Text, nullable=False, server_default="usage"),
    Column("cache_write", Int64, nullable=False, server_default="0"),
    Column("cache_write_ttl_class", Text, nullable=False, server_default=""),
    Column("project_id", Text),
    Column("key_id", Text),
    Column("client_request_id", Text),
    Column("corrects", Int64),
    UniqueConstraint("request_id", name="entries_once_per_request"),
    Index("entries_by_tenant", "tenant_id", "end_time_ns"),
    Index("entries_by_time", "end_time_ns"),
    sqlite_strict=True,
)

_by_client = entries.c.client_request_id.is_not(None)
Index(
    "entries_by_client_request",
    entries.c.client_request_id,
    sqlite_where=_by_client,
    postgresql_where=_by_client,
)

_corrections = entries.c.kind != "usage"
Index(
    "entries_of_corrections",
    entries.c.corrects,
    sqlite_where=_corrections,
    postgresql_where=_corrections,
)

postings = Table(
    "postings",
    metadata,
    Column("position", Int64, ForeignKey("entries.position"), primary_key=True),
    Column("line", Int64, primary_key=True),
    Column("account", Text, nullable=False),
    Column("token_class", Text, nullable=False),
    Column("quantity_tokens", Int64, nullable=False),
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
    Column("received_time_ns", Int64, nullable=False),
    Column("wire", LargeBinary, nullable=False),
    Column("sequence", Int64),
    Column("hash", LargeBinary(32)),
    Index("refused_events_in_order", "sequence", unique=True),
    sqlite_strict=True,
)

ledger_keys = Table(
    "ledger_keys",
    metadata,
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("key_id", Text, nullable=False, unique=True),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("time_ns", Int64, nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
    sqlite_strict=True,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("position", Int64, nullable=False),
    Column("entry_hash", LargeBinary(32), nullable=False),
    Column("refused_count", Int64, nullable=False),
    Column("refused_hash", LargeBinary(32), nullable=False),
    Column("time_ns", Int64, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
    sqlite_strict=True,
)

attestations = Table(
    "attestations",
    metadata,
    Column("attestation_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("start_time_ns", Int64, nullable=False),
    Column("end_time_ns", Int64, nullable=False),
    Column("content", Text, nullable=False),
    Column("recorded_time_ns", Int64, nullable=False),
    Index("attestations_by_time", "kind", "end_time_ns"),
    sqlite_strict=True,
)

refused_attestations = Table(
    "refused_attestations",
    metadata,
    Column("content_hash", LargeBinary(32), primary_key=True),
    Column("attestation_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_time_ns", Int64, nullable=False),
    Column("wire", LargeBinary, nullable=False),
    sqlite_strict=True,
)

EVIDENCE_TABLES = (attestations.name, refused_attestations.name)
"""What is held against the ledger, and is in no chain: nothing proves that it was not changed."""

KEPT_TABLES = tuple(table.name for table in metadata.sorted_tables)
"""Where rows are only ever added: all but what follows from them."""

UNKNOWN = "*unknown"
"""A project or key that the worker did not tell; no project may have a name with "*"."""

rollups = Table(
    "rollups",
    metadata,
    Column("hour", Int64, primary_key=True, autoincrement=False),
    Column("tenant_id", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("price_id", Text, primary_key=True),
    Column("ttl_class", Text, primary_key=True),
    Column("request_count", Int64, nullable=False),
    Column("hit_gpu", Int64, nullable=False),
    Column("hit_host", Int64, nullable=False),
    Column("hit_ssd", Int64, nullable=False),
    Column("hit_shared", Int64, nullable=False),
    Column("miss", Int64, nullable=False),
    Column("output", Int64, nullable=False),
    Column("cache_write", Int64, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

wallets = Table(
    "wallets",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("state", Text, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

holds = Table(
    "holds",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("ask", Text, nullable=False),
    Column("amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("weight_micro", Int64, nullable=False),
    Column("expires_ns", Int64, nullable=False),
    Index("holds_by_tenant", "tenant_id"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

budget_spend = Table(
    "budget_spend",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("start_ns", Int64, primary_key=True),
    Column("end_ns", Int64, primary_key=True),
    Column("amount", Text, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("time_ns", Int64, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("budget_position", Int64, nullable=False),
    Column("period", Int64, nullable=False),
    Column("percent", Int64, nullable=False),
    Column("amount", Text, nullable=False),
    Column("limit_amount", Text, nullable=False),
    Column("currency", Text, nullable=False),
    UniqueConstraint(
        "kind",
        "tenant_id",
        "project_id",
        "key_id",
        "budget_position",
        "period",
        "percent",
        name="budget_alerts_once",
    ),
    Index("budget_alerts_by_tenant", "tenant_id", "time_ns"),
    sqlite_strict=True,
)
