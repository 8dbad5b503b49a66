"""Format 3: wallets. No stored event, posting or hash changes; nobody had a balance before."""

import sqlalchemy as sa
from alembic import op

from billing.ledger_guards import drop_guards, make_guards

revision = "format_3"
down_revision = "format_2"

META = ("ledger_meta",)


def upgrade() -> None:
    connection = op.get_bind()
    op.create_table(
        "wallets",
        sa.Column("tenant_id", sa.Text, primary_key=True),
        sa.Column("currency", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    drop_guards(connection, META)
    connection.exec_driver_sql("UPDATE ledger_meta SET value = '3' WHERE key = 'format_version'")
    make_guards(connection, META)
