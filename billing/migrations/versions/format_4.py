"""Format 4: what cache services attest, beside the ledger. Adds tables; changes nothing."""

import sqlalchemy as sa
from alembic import op

from billing.ledger_guards import drop_guards, make_guards

revision = "format_4"
down_revision = "format_3"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NEW_TABLES = ("attestations", "refused_attestations")


def upgrade() -> None:
    connection = op.get_bind()
    op.create_table(
        "attestations",
        sa.Column("attestation_id", sa.Text, primary_key=True),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("kind", "request_id", "tenant_id", "node")
        ),
        sa.Column("start_time_ns", INT64, nullable=False),
        sa.Column("end_time_ns", INT64, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("recorded_time_ns", INT64, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("attestations_by_time", "attestations", ["kind", "end_time_ns"])
    op.create_table(
        "refused_attestations",
        sa.Column("content_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("attestation_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("received_time_ns", INT64, nullable=False),
        sa.Column("wire", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    make_guards(connection, NEW_TABLES)
    drop_guards(connection, ["ledger_meta"])
    connection.exec_driver_sql("UPDATE ledger_meta SET value = '4' WHERE key = 'format_version'")
    make_guards(connection, ["ledger_meta"])
