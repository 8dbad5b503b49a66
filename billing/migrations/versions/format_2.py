"""Format 2: corrections, who asked, checkpoints and their keys; refused events in a chain.

Adds columns and fills them from what is there. No stored event, posting or hash changes.
"""

import json

import sqlalchemy as sa
from alembic import op

from billing.ledger_guards import drop_guards, make_guards
from billing.refusals import REFUSED_GENESIS, RefusedLink

revision = "format_2"
down_revision = "format_1"

INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OLD_TABLES = ("ledger_meta", "price_versions", "entries", "postings", "refused_events")
NEW_TABLES = ("ledger_keys", "checkpoints")
ROWS_AT_ONCE = 10_000


def upgrade() -> None:
    connection = op.get_bind()
    drop_guards(connection, OLD_TABLES)
    _add_columns()
    _fill_entries(connection)
    _chain_refused(connection)
    _add_tables()
    _roll_up(connection)
    connection.exec_driver_sql("UPDATE ledger_meta SET value = '2' WHERE key = 'format_version'")
    make_guards(connection, (*OLD_TABLES, *NEW_TABLES))


def _add_columns() -> None:
    for column in (
        sa.Column("kind", sa.Text, nullable=False, server_default="usage"),
        sa.Column("cache_write", INT64, nullable=False, server_default="0"),
        sa.Column("cache_write_ttl_class", sa.Text, nullable=False, server_default=""),
        sa.Column("project_id", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("client_request_id", sa.Text),
        sa.Column("corrects", INT64),
    ):
        op.add_column("entries", column)
    op.add_column("refused_events", sa.Column("sequence", INT64))
    op.add_column("refused_events", sa.Column("hash", sa.LargeBinary(32)))
    named = sa.text("client_request_id IS NOT NULL")
    op.create_index(
        "entries_by_client_request",
        "entries",
        ["client_request_id"],
        sqlite_where=named,
        postgresql_where=named,
    )
    correcting = sa.text("kind != 'usage'")
    op.create_index(
        "entries_of_corrections",
        "entries",
        ["corrects"],
        sqlite_where=correcting,
        postgresql_where=correcting,
    )


def _fill_entries(connection: sa.Connection) -> None:
    """Cache writes and the client's name for the request; few events have either."""
    few = sa.text(
        "SELECT position, event FROM entries WHERE position > :after AND (event LIKE :written"
        " OR event NOT LIKE :nameless) ORDER BY position LIMIT :limit"
    )
    update = sa.text(
        "UPDATE entries SET cache_write = :tokens, cache_write_ttl_class = :ttl_class,"
        " client_request_id = :name WHERE position = :position"
    )
    after = 0
    while True:
        wanted = {"written": '{"cache_write"%', "nameless": '{"client_request_id":"",%'}
        query = {"after": after, "limit": ROWS_AT_ONCE, **wanted}
        rows = connection.execute(few, query).all()
        if not rows:
            return
        connection.execute(update, [_filled(row.position, row.event) for row in rows])
        after = rows[-1].position


def _filled(position: int, event: str) -> dict[str, object]:
    fields = json.loads(event)
    name = fields["client_request_id"]
    return {
        "position": position,
        "tokens": fields.get("cache_write", 0),
        "ttl_class": fields.get("cache_write_ttl_class", ""),
        "name": name if name and len(name) <= 1024 and name.isprintable() else None,
    }


def _chain_refused(connection: sa.Connection) -> None:
    rows = connection.exec_driver_sql(
        "SELECT content_hash, request_id, reason, received_time_ns FROM refused_events"
        " ORDER BY received_time_ns, content_hash"
    ).all()
    update = sa.text(
        "UPDATE refused_events SET sequence = :sequence, hash = :hash WHERE content_hash = :of"
    )
    chain = REFUSED_GENESIS
    for sequence, row in enumerate(rows, 1):
        link = RefusedLink(
            sequence, bytes(row.content_hash), row.request_id, row.reason, row.received_time_ns
        )
        chain = link.hash_after(chain)
        values = {"sequence": sequence, "hash": chain, "of": row.content_hash}
        connection.execute(update, values)
    op.create_index("refused_events_in_order", "refused_events", ["sequence"], unique=True)


def _add_tables() -> None:
    op.create_table(
        "ledger_keys",
        sa.Column("number", INT64, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.Text, nullable=False, unique=True),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("time_ns", INT64, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("number", INT64, primary_key=True, autoincrement=False),
        sa.Column("position", INT64, nullable=False),
        sa.Column("entry_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("refused_count", INT64, nullable=False),
        sa.Column("refused_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("time_ns", INT64, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sqlite_strict=True,
    )


def _roll_up(connection: sa.Connection) -> None:
    """Sums by hour, of all entries there are."""
    keys = ("tenant_id", "project", "key", "model", "price_id", "ttl_class")
    counts = ("hit_gpu", "hit_host", "hit_ssd", "hit_shared", "miss", "output", "cache_write")
    op.create_table(
        "rollups",
        sa.Column("hour", INT64, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text, primary_key=True) for name in keys),
        *(sa.Column(name, INT64, nullable=False) for name in ("request_count", *counts)),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    sums = ", ".join(f"SUM({name})" for name in counts)
    connection.exec_driver_sql(
        f"INSERT INTO rollups SELECT end_time_ns / 3600000000000, tenant_id, '*unknown',"
        f" '*unknown', model, COALESCE(price_id, ''), cache_write_ttl_class, COUNT(*), {sums}"
        " FROM entries GROUP BY end_time_ns / 3600000000000, tenant_id, model, price_id,"
        " cache_write_ttl_class"
    )
