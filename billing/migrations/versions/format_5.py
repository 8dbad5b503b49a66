"""Format 5: holds, alerts and what limits have spent. No stored event, posting or hash changes."""

import sqlalchemy as sa
from alembic import op

from billing.ledger_guards import drop_guards, make_guards

revision = "format_5"
down_revision = "format_4"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
META = ("ledger_meta",)


def upgrade() -> None:
    connection = op.get_bind()
    op.create_table(
        "holds",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("ask", sa.Text, nullable=False),
        sa.Column("amount", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("weight_micro", INT64, nullable=False),
        sa.Column("expires_ns", INT64, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("holds_by_tenant", "holds", ["tenant_id"])
    keys = ("kind", "tenant_id", "project_id", "key_id", "budget_position", "period", "percent")
    op.create_table(
        "budget_alerts",
        sa.Column("number", INT64, primary_key=True, autoincrement=False),
        sa.Column("time_ns", INT64, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("budget_position", INT64, nullable=False),
        sa.Column("period", INT64, nullable=False),
        sa.Column("percent", INT64, nullable=False),
        sa.Column("amount", sa.Text, nullable=False),
        sa.Column("limit_amount", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.UniqueConstraint(*keys, name="budget_alerts_once"),
        sqlite_strict=True,
    )
    op.create_index("budget_alerts_by_tenant", "budget_alerts", ["tenant_id", "time_ns"])
    names = ("tenant_id", "project_id", "key_id", "currency")
    op.create_table(
        "budget_spend",
        *(sa.Column(name, sa.Text, primary_key=True) for name in names),
        sa.Column("start_ns", INT64, primary_key=True),
        sa.Column("end_ns", INT64, primary_key=True),
        sa.Column("amount", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    drop_guards(connection, META)
    connection.exec_driver_sql("UPDATE ledger_meta SET value = '5' WHERE key = 'format_version'")
    make_guards(connection, META)
