"""A copy of a ledger's file, verified without the service that wrote it and without its key.

Invariant: the file is opened read-only and stays as it is, byte for byte. Blocks; any thread.
"""

from pathlib import Path
from urllib.parse import quote

from sqlalchemy import NullPool, create_engine, inspect, select
from sqlalchemy.exc import DBAPIError

from billing.checkpoint_check import Trust
from billing.entry import genesis_hash
from billing.errors import LedgerForeignError, LedgerTooNewError, LedgerUnavailableError
from billing.ledger_schema import FORMAT_VERSION, ledger_meta
from billing.ledger_verify import Verification, verify_ledger
from billing.meter import Head

__all__ = ["verify_file"]


def verify_file(path: Path, trust: Trust) -> Verification:
    """Raises LedgerForeignError, LedgerTooNewError, LedgerUnavailableError."""
    if not path.is_file():
        raise LedgerUnavailableError(f"there is no file {path}", path=path)
    # Beside a file in use there is its log: only then may SQLite look for it.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    engine = create_engine(
        f"sqlite:///file:{quote(str(path.absolute()))}?{mode}&uri=true", poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            if ledger_meta.name not in inspect(connection).get_table_names():
                raise LedgerForeignError(f"{path} is not a ledger of kvtier", path=path)
            meta = {row.key: row.value for row in connection.execute(select(ledger_meta))}
            found = meta.get("format_version", "")
            if found.isdecimal() and int(found) > FORMAT_VERSION:
                raise LedgerTooNewError(f"{path} has format {found}", path=path)
            if found.isdecimal() and int(found) < FORMAT_VERSION:
                raise LedgerUnavailableError(
                    f"{path} has format {found}; a billing service of this version brings it to"
                    f" {FORMAT_VERSION} when it opens it: let it open a copy",
                    path=path,
                )
            nothing = Head(0, genesis_hash(meta.get("ledger_id", "")))
            return verify_ledger(connection, nothing, trust=trust)
    except DBAPIError as error:
        raise LedgerForeignError(f"{path} cannot be read: {error.orig}", path=path) from None
    finally:
        engine.dispose()
