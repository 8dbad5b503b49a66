"""The ledger in a PostgreSQL database: the connections into it, and the lock of its one writer.

Invariant: one process at a time writes, and a transaction that committed is on the disk. Who writes
holds an advisory lock, and holds it on the very session that it writes with: a session that is lost
takes its lock along, and nothing can be written without one. A `LedgerStore`, see there for
threads.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from billing.errors import (
    BillingError,
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerUnavailableError,
)
from billing.ledger_migrate import prepare_ledger
from billing.ledger_rows import COPY

__all__ = ["PostgresStore"]

_LOCK = 0x6B767469
"""The advisory lock's first key, "kvti"; the second names the schema."""

_CONNECT_SECONDS = 10

# A host that dies, or a link that does, says nothing. Either end of a session takes the other for
# gone after some 30 s: billing, to connect anew; the server, so that the lock is free again.
_SILENT_SECONDS = 10
_PROBE_SECONDS = 5
_PROBES = 4
_UNANSWERED_SECONDS = 30
_NOTICE_A_DEAD_CLIENT = (
    f"SET tcp_keepalives_idle = {_SILENT_SECONDS};"
    f" SET tcp_keepalives_interval = {_PROBE_SECONDS};"
    f" SET tcp_keepalives_count = {_PROBES};"
    f" SET tcp_user_timeout = {1000 * _UNANSWERED_SECONDS}"
)

_READERS = 4

_READ_ONLY = ("25006", "42501", "28000", "28P01", "3D000")
"""SQLSTATE: read-only transaction, no privilege, no login, wrong password, no such database."""

_NO_ROOM = "53100"

_IN_USE = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted"
    f" AND classid = {_LOCK} AND database = (SELECT oid FROM pg_database"
    " WHERE datname = current_database())"
    " AND objid::bigint = (hashtext(current_schema())::bigint & 4294967295)"
)
_TAKE = f"SELECT pg_try_advisory_lock({_LOCK}, hashtext(current_schema()))"

Result = TypeVar("Result")


class PostgresStore:
    """An open ledger in PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Opens or makes the ledger in the schema of `url`'s database that comes first.

        Raises LedgerReadOnlyError, LedgerLockedError, LedgerTooNewError, LedgerForeignError,
        LedgerUnavailableError.
        """
        parsed = _parsed(url)
        self.place = parsed.render_as_string(hide_password=True)
        self._writing = _engine(parsed, poolclass=NullPool)
        # Before SQLAlchemy asks a new session what it is, which texts in bytes would confuse.
        event.listen(self._writing, "connect", self._prepare_writer, insert=True)
        event.listen(self._writing, "do_execute", _copy_one)
        event.listen(self._writing, "do_executemany", _copy)
        # A session that the database closed while nobody asked is found before it is used.
        self._reading = _engine(
            parsed, poolclass=QueuePool, pool_size=_READERS, max_overflow=0, pool_pre_ping=True
        ).execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        try:
            # Kept: between this and the writer's first word nobody else may take the lock.
            self._first: Connection | None = self._writing.connect()
            with self._first.begin():
                self.ledger_id = prepare_ledger(self._first, self.place)
        except DBAPIError as error:
            self.close()
            raise self.error(error) from error
        except BaseException:
            self.close()
            raise

    def writer(self) -> Connection:
        first, self._first = self._first, None
        return first if first is not None else self._writing.connect()

    def read(self, query: Callable[[Connection], Result]) -> Result:
        try:
            with self._reading.connect() as connection:
                return query(connection)
        except DBAPIError as error:
            raise self.error(error) from error

    def error(self, error: DBAPIError) -> BillingError:
        state = getattr(error.orig, "sqlstate", None) or ""
        text = " ".join(str(error.orig).split())
        if state in _READ_ONLY:
            return LedgerReadOnlyError(
                f"the ledger {self.place} cannot be written: {text}; give billing's user what it"
                " needs, or choose another with --set database_url=URL",
                path=self.place,
            )
        if state == _NO_ROOM:
            return LedgerUnavailableError(
                f"no room for the ledger on the disk of {self.place}; free some space",
                path=self.place,
            )
        return LedgerUnavailableError(
            f"the ledger {self.place} does not take it now: {text}", path=self.place
        )

    def close(self) -> None:
        first, self._first = getattr(self, "_first", None), None
        if first is not None:
            first.close()
        self._writing.dispose()
        self._reading.dispose()

    def _prepare_writer(self, connection: Any, record: object) -> None:
        """Each session that writes: durable commits, and the lock. Raises LedgerLockedError,
        LedgerForeignError."""
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            connection.close()
            raise LedgerForeignError(
                f"the database of {self.place} keeps text as {encoding}; make one with ENCODING"
                " 'UTF8' (TEMPLATE template0), or choose another with --set database_url=URL",
                path=self.place,
            )
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(_NOTICE_A_DEAD_CLIENT)
            (taken,) = cursor.execute(_TAKE).fetchone()
            holders = [] if taken else cursor.execute(_IN_USE).fetchall()
        connection.commit()
        if not taken:
            connection.close()
            holder = str(holders[0][0]) if holders else "unknown"
            raise LedgerLockedError(
                f"another billing service (database session {holder}) has the ledger in"
                f" {self.place} open; stop it, or choose another with --set database_url=URL",
                path=self.place,
                process=holder,
            )


def _copy(cursor: Any, statement: str, rows: Sequence[Sequence[Any]], context: object) -> bool:
    """Streams the rows of a COPY; what is none is for SQLAlchemy to do."""
    if not statement.startswith(COPY):
        return False
    with cursor.copy(statement) as stream:
        for row in rows:
            stream.write_row(row)
    return True


def _copy_one(cursor: Any, statement: str, row: Sequence[Any], context: object) -> bool:
    return _copy(cursor, statement, [row], context)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("postgresql", "postgres"):
        # Not the text itself: it may hold a password.
        raise LedgerForeignError("database_url is not postgresql://USER@HOST:PORT/DATABASE")
    return parsed.set(drivername="postgresql+psycopg")


def _engine(url: URL, **pool: Any) -> Engine:
    try:
        return create_engine(
            url,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "kvtier",
                "keepalives_idle": _SILENT_SECONDS,
                "keepalives_interval": _PROBE_SECONDS,
                "keepalives_count": _PROBES,
                "tcp_user_timeout": 1000 * _UNANSWERED_SECONDS,
            },
            **pool,
        )
    except ImportError:
        raise LedgerUnavailableError(
            "a ledger in PostgreSQL needs psycopg: pip install 'kvtier[postgres]'"
        ) from None
