"""The ledger's file: opening it, locking it, and the connections into it.

    DIRECTORY/ledger.sqlite    the database, with -wal and -shm beside it while open
    DIRECTORY/ledger.lock      held by the one process that may write; has its process id

Invariant: one process at a time has the ledger open for writing, and a transaction that committed
is on the disk (write-ahead log, synchronous=FULL). All that is particular to SQLite is in this file
and in the triggers of `ledger_schema`. Opened and closed on the main thread; `read` runs on any
thread, the writer's connection on the writer's only.
"""

import errno
import fcntl
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, inspect, select
from sqlalchemy.exc import DBAPIError

from billing.errors import (
    BillingError,
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerTooNewError,
    LedgerUnavailableError,
)
from billing.ledger_schema import FORMAT_VERSION, ledger_meta, metadata

__all__ = ["LEDGER_FILE", "LedgerStore", "ledger_error"]

LEDGER_FILE = "ledger.sqlite"
_LOCK_FILE = "ledger.lock"
_BUSY_SECONDS = 10
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


class LedgerStore:
    """An open ledger file. Close it to let another process have it."""

    def __init__(self, directory: Path) -> None:
        """Opens or makes the ledger in `directory`.

        Raises LedgerReadOnlyError, LedgerLockedError, LedgerTooNewError, LedgerForeignError,
        LedgerUnavailableError.
        """
        self.path = directory / LEDGER_FILE
        self._lock = _locked(directory)
        self._writing = _engine(self.path, "BEGIN IMMEDIATE", query_only=False)
        self._reading = _engine(self.path, "BEGIN", query_only=True)
        try:
            with self._writing.connect() as connection, connection.begin():
                self.ledger_id = _prepared(connection, self.path)
        except DBAPIError as error:
            self.close()
            raise ledger_error(error, self.path) from error
        except BaseException:
            self.close()
            raise

    def writer(self) -> Connection:
        """A connection for the one writer; it closes it."""
        return self._writing.connect()

    def read(self, query: Callable[[Connection], Result]) -> Result:
        """Runs `query` on a snapshot of the ledger. Blocks. Raises LedgerUnavailableError."""
        try:
            # Ends with a rollback: a commit fails on a damaged file, even after mere reading.
            with self._reading.connect() as connection:
                return query(connection)
        except DBAPIError as error:
            raise ledger_error(error, self.path) from error

    def close(self) -> None:
        """Idempotent."""
        self._writing.dispose()
        self._reading.dispose()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def ledger_error(error: DBAPIError, path: Path) -> BillingError:
    """What a refusal of the database means."""
    text = str(error.orig)
    if "readonly" in text or "unable to open" in text:
        return LedgerReadOnlyError(
            f"the ledger {path} cannot be written: {text}; give billing's user write access to it,"
            " or choose another with --set data_directory=DIR",
            path=path,
        )
    if "not a database" in text:
        return LedgerForeignError(f"{path} is not a ledger of kvtier: {text}", path=path)
    if "is full" in text:
        return _no_room(path)
    return LedgerUnavailableError(f"the ledger {path} does not take it now: {text}", path=path)


def _locked(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise _unusable(error, directory) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise LedgerLockedError(
            f"another billing service (process {holder}) has the ledger in {directory} open; stop"
            " it, or choose another with --set data_directory=DIR",
            path=directory,
            process=holder,
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(lock)
        raise _unusable(error, directory) from None
    return lock


def _unusable(error: OSError, directory: Path) -> BillingError:
    """What it means that the directory refuses."""
    if error.errno in _READ_ONLY:
        return LedgerReadOnlyError(
            f"cannot write in {directory}: {error.strerror}; choose another with"
            " --set data_directory=DIR",
            path=directory,
        )
    if error.errno in _NO_ROOM:
        return _no_room(directory)
    return LedgerUnavailableError(
        f"cannot use {directory} for the ledger: {error.strerror}; choose another with"
        " --set data_directory=DIR",
        path=directory,
    )


def _no_room(path: Path) -> LedgerUnavailableError:
    return LedgerUnavailableError(
        f"no room for the ledger on the disk of {path}; free some space", path=path
    )


def _engine(path: Path, begin: str, *, query_only: bool) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )

    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver must not begin by itself: `begin` does
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={int(query_only)}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _prepared(connection: Connection, path: Path) -> str:
    """Makes the tables of a new ledger or checks those of an old one; returns the ledger id."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        metadata.create_all(connection)
        meta = {"format_version": str(FORMAT_VERSION), "ledger_id": str(uuid.uuid4())}
        rows = [{"key": key, "value": value} for key, value in meta.items()]
        connection.execute(ledger_meta.insert(), rows)
    elif ledger_meta.name not in tables:
        raise LedgerForeignError(f"{path} is a database, but not a ledger of kvtier", path=path)
    found = {row.key: row.value for row in connection.execute(select(ledger_meta))}
    version = found.get("format_version", "")
    if not version.isdecimal() or "ledger_id" not in found:
        raise LedgerForeignError(f"{path} is a database, but not a ledger of kvtier", path=path)
    if int(version) > FORMAT_VERSION:
        raise LedgerTooNewError(
            f"the ledger {path} has format {version}; this kvtier knows up to {FORMAT_VERSION}."
            " Start the newer kvtier that wrote it",
            path=path,
            format_version=version,
        )
    return str(found["ledger_id"])
