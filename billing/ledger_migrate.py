"""A ledger's tables: made new, brought to today's format, or refused.

Invariant: a ledger of a newer format, and a database of something else, are left as they are; an
upgrade happens whole or not at all, in the caller's transaction.
"""

import uuid
from pathlib import Path

from sqlalchemy import Connection, inspect, select

from billing.errors import LedgerForeignError, LedgerTooNewError
from billing.ledger_schema import FORMAT_VERSION, ledger_meta

__all__ = ["REVISION", "prepare_ledger"]

REVISION = f"format_{FORMAT_VERSION}"
"""Of `migrations/`: the last one."""

_VERSION_TABLE = "alembic_version"


def prepare_ledger(connection: Connection, place: str) -> str:
    """Makes or upgrades the tables behind `connection`; returns the ledger's id.

    `place` names the database for people. Raises LedgerForeignError, LedgerTooNewError.
    """
    tables = set(inspect(connection).get_table_names())
    if not tables:
        _upgrade(connection, stamp=None)
        rows = [{"key": "format_version", "value": str(FORMAT_VERSION)}]
        rows.append({"key": "ledger_id", "value": str(uuid.uuid4())})
        connection.execute(ledger_meta.insert(), rows)
    elif ledger_meta.name not in tables:
        raise _foreign(place)
    found = {row.key: row.value for row in connection.execute(select(ledger_meta))}
    version = found.get("format_version", "")
    if not version.isdecimal() or "ledger_id" not in found:
        raise _foreign(place)
    if int(version) > FORMAT_VERSION:
        raise LedgerTooNewError(
            f"the ledger {place} has format {version}; this kvtier knows up to {FORMAT_VERSION}."
            " Start the newer kvtier that wrote it",
            path=place,
            format_version=version,
        )
    if int(version) < FORMAT_VERSION:
        # Format 1 was made before there were revisions.
        _upgrade(connection, stamp=None if _VERSION_TABLE in tables else f"format_{version}")
    return str(found["ledger_id"])


def _upgrade(connection: Connection, *, stamp: str | None) -> None:
    # Here: alembic takes a third of a second to load, and most starts have nothing to upgrade.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if stamp is not None:
        command.stamp(config, stamp)
    command.upgrade(config, REVISION)


def _foreign(place: str) -> LedgerForeignError:
    return LedgerForeignError(f"{place} is a database, but not a ledger of kvtier", path=place)
