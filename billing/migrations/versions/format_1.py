"""Format 1: metadata, price versions, entries, postings, refused events; all append-only."""

import sqlalchemy as sa
from alembic import op

from billing.ledger_guards import make_guards

revision = "format_1"
down_revision = None

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = ("ledger_meta", "price_versions", "entries", "postings", "refused_events")


def upgrade() -> None:
    op.create_table(
        "ledger_meta",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "price_versions",
        sa.Column("price_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    counts = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output")
    op.create_table(
        "entries",
        sa.Column("position", INT64, primary_key=True, autoincrement=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("end_time_ns", INT64, nullable=False),
        *(sa.Column(name, INT64, nullable=False) for name in counts),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("price_id", sa.Text, sa.ForeignKey("price_versions.price_id")),
        sa.Column("recorded_time_ns", INT64, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.UniqueConstraint("request_id", name="entries_once_per_request"),
        sqlite_strict=True,
    )
    op.create_index("entries_by_tenant", "entries", ["tenant_id", "end_time_ns"])
    op.create_index("entries_by_time", "entries", ["end_time_ns"])
    op.create_table(
        "postings",
        sa.Column("position", INT64, sa.ForeignKey("entries.position"), primary_key=True),
        sa.Column("line", INT64, primary_key=True),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("token_class", sa.Text, nullable=False),
        sa.Column("quantity_tokens", INT64, nullable=False),
        sa.Column("amount", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "refused_events",
        sa.Column("content_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("received_time_ns", INT64, nullable=False),
        sa.Column("wire", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    make_guards(op.get_bind(), TABLES)
