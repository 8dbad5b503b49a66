"""Where a ledger lives, whichever database has it.

    SqliteStore      DIRECTORY/ledger.sqlite             the default
    PostgresStore    the database that a URL names       by one setting

Invariant: one process at a time has a ledger open for writing, and a transaction that committed is
on the disk. What is particular to a database is in its store, in `ledger_guards` and in
`ledger_rows`; everything else is the same text for both.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from billing.errors import BillingError

__all__ = ["LedgerStore"]

Result = TypeVar("Result")


class LedgerStore(Protocol):
    """An open ledger. Opened and closed on the main thread; close it to let another have it."""

    @property
    def place(self) -> str:
        """Names it for people; without a password."""
        ...

    @property
    def ledger_id(self) -> str: ...

    def writer(self) -> Connection:
        """A connection for the one writer, which closes it; on the writer's thread only."""
        ...

    def read(self, query: Callable[[Connection], Result]) -> Result:
        """Runs `query` on a snapshot. Blocks; any thread. Raises LedgerUnavailableError."""
        ...

    def error(self, error: DBAPIError) -> BillingError:
        """What a refusal of the database means."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...
