"""Format 6: entries of the kind "storage". No table, stored event, posting or hash changes."""

from alembic import op

from billing.ledger_guards import drop_guards, make_guards

revision = "format_6"
down_revision = "format_5"

META = ("ledger_meta",)


def upgrade() -> None:
    connection = op.get_bind()
    drop_guards(connection, META)
    connection.exec_driver_sql("UPDATE ledger_meta SET value = '6' WHERE key = 'format_version'")
    make_guards(connection, META)
