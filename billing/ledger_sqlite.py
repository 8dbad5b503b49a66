"""The ledger in a file of SQLite: opening it, locking it, and the connections into it.

    DIRECTORY/ledger.sqlite    the database, with -wal and -shm beside it while open
    DIRECTORY/ledger.lock      held by the one process that may write; has its process id

Invariant: one process at a time has the ledger open for writing, and a transaction that committed
is on the disk (write-ahead log, synchronous=FULL). A `LedgerStore`, see there for threads.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from billing.errors import (
    BillingError,
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerUnavailableError,
)
from billing.ledger_migrate import prepare_ledger

__all__ = ["LEDGER_FILE", "SqliteStore"]

LEDGER_FILE = "ledger.sqlite"
_LOCK_FILE = "ledger.lock"
_BUSY_SECONDS = 10
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


class SqliteStore:
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
                self.ledger_id = prepare_ledger(connection, self.place)
        except DBAPIError as error:
            self.close()
            raise self.error(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> str:
        return str(self.path)

    def writer(self) -> Connection:
        return self._writing.connect()

    def read(self, query: Callable[[Connection], Result]) -> Result:
        try:
            # Ends with a rollback: a commit fails on a damaged file, even after mere reading.
            with self._reading.connect() as connection:
                return query(connection)
        except DBAPIError as error:
            raise self.error(error) from error

    def error(self, error: DBAPIError) -> BillingError:
        text, path = str(error.orig), self.path
        if "readonly" in text or "unable to open" in text:
            return LedgerReadOnlyError(
                f"the ledger {path} cannot be written: {text}; give billing's user write access to"
                " it, or choose another with --set data_directory=DIR",
                path=path,
            )
        if "not a database" in text:
            return LedgerForeignError(f"{path} is not a ledger of kvtier: {text}", path=path)
        if "is full" in text:
            return _no_room(path)
        return LedgerUnavailableError(f"the ledger {path} does not take it now: {text}", path=path)

    def close(self) -> None:
        self._writing.dispose()
        self._reading.dispose()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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
