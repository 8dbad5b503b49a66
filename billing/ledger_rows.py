"""The two statements that a transaction of many events spends its time in, each as fast as its
database has it: which request ids have an entry, and rows added by the thousand.

Past SQLAlchemy's handling of each parameter of each row, which is a third of a transaction's time;
all values are of the driver's own types. On the writer's thread, in its transaction.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select

from billing.ledger_schema import refused_events

__all__ = [
    "COPY",
    "add_rows",
    "insert_rows",
    "insert_values",
    "kept_refusals",
    "known_requests",
    "put_rows",
]

_LOOKUP_MAX = 900
"""Names in one query: below the oldest limit of SQLite on parameters."""

COPY = "COPY"
"""Begins statements whose rows go to PostgreSQL in a stream: `ledger_postgres` sends them."""

_VALUES_MAX = 32_000
"""Values in one statement: SQLite takes 32,766 since 2020, where it was not built to take less."""


Value = TypeVar("Value")


def known_requests(
    connection: Connection, request_ids: Sequence[str]
) -> Iterator[tuple[str, int, str]]:
    """(request id, position, event) of those that have an entry."""
    # No entry has a NUL in its id; PostgreSQL knows none, and SQLite's JSON ends at one.
    names = [name for name in request_ids if "\x00" not in name]
    query = "SELECT request_id, position, event FROM entries WHERE request_id"
    if connection.dialect.name == "postgresql":
        found = connection.exec_driver_sql(f"{query} = ANY(%s)", (names,))
    else:
        # One text, however many names: it is prepared once.
        among = f"{query} IN (SELECT value FROM json_each(?))"
        found = connection.exec_driver_sql(among, (json.dumps(names),))
    for row in found:
        yield row.request_id, row.position, row.event


def kept_refusals(connection: Connection, content_hashes: Sequence[bytes]) -> Iterator[bytes]:
    """Those of `content_hashes` that were kept before."""
    for some in _parts(content_hashes):
        query = select(refused_events.c.content_hash)
        found = connection.execute(query.where(refused_events.c.content_hash.in_(some)))
        yield from (bytes(content_hash) for content_hash in found.scalars())


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Adds rows that have every column."""
    insert_values(connection, table, list(map(itemgetter(*table.columns.keys()), rows)))


def insert_values(
    connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]], conflict: str = ""
) -> None:
    """The same, of more than one column each, in the order of the table's; none: nothing."""
    names = table.columns.keys()
    into = f"INSERT INTO {table.name} ({', '.join(names)})"
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        if not conflict:
            # Carried out by the store: SQLAlchemy has no word for it.
            connection.exec_driver_sql(f"{COPY} {table.name} ({', '.join(names)}) FROM STDIN", rows)
            return
        # One array a column: a row costs no statement of its own.
        arrays = ", ".join(f"%s::{_array_type(table, name)}" for name in names)
        columns = tuple(map(list, zip(*rows, strict=True)))
        connection.exec_driver_sql(f"{into} SELECT * FROM unnest({arrays}) {conflict}", columns)
        return
    # For each statement the interpreter's lock is given up and asked for again, while other threads
    # want it: few large ones, of few sizes, so that each is prepared once.
    start, at_once = 0, _rows_at_once(connection, len(names))
    while start < len(rows):
        while at_once > len(rows) - start:
            at_once //= 2
        some = tuple(chain.from_iterable(rows[start : start + at_once]))
        connection.exec_driver_sql(_insert_text(into, len(names), at_once, conflict), some)
        start += at_once


def _rows_at_once(connection: Connection, columns: int) -> int:
    """The most rows of a statement: a power of two."""
    driver: Any = connection.connection.dbapi_connection
    limit: int = driver.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    return 1 << (min(limit, _VALUES_MAX) // columns).bit_length() - 1


@lru_cache(maxsize=256)
def _insert_text(into: str, columns: int, rows: int, conflict: str) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)} {conflict}"


def add_rows(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Adds the counts of rows to those of the rows with the same keys, where there are any."""
    names = table.columns.keys()
    counts = [name for name in names if name not in keys]
    sums = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sums}"
    values = list(map(itemgetter(*names), rows))
    insert_values(connection, table, values, conflict)


def put_rows(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Adds rows, in the place of those with the same keys."""
    rest = [column.name for column in table.columns if column.name not in keys]
    sets = ", ".join(f"{name} = excluded.{name}" for name in rest)
    values = list(map(itemgetter(*table.columns.keys()), rows))
    conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sets}"
    insert_values(connection, table, values, conflict)


def _array_type(table: Table, name: str) -> str:
    return {"BIGINT": "bigint[]", "TEXT": "text[]", "BLOB": "bytea[]", "BYTEA": "bytea[]"}[
        str(table.columns[name].type).partition("(")[0]
    ]


def _parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    for start in range(0, len(values), _LOOKUP_MAX):
        yield values[start : start + _LOOKUP_MAX]
