"""The two statements that a transaction of many events spends its time in, each as fast as its
database has it: which request ids have an entry, and rows added by the thousand.

Past SQLAlchemy's handling of each parameter of each row, which is a third of a transaction's time;
all values are of the driver's own types. On the writer's thread, in its transaction.
"""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select

from billing.ledger_schema import entries, refused_events

__all__ = ["add_rows", "insert_rows", "kept_refusals", "known_requests", "put_rows"]

_LOOKUP_MAX = 900
"""Names in one query: below the oldest limit of SQLite on parameters."""


Value = TypeVar("Value")


def known_requests(
    connection: Connection, request_ids: Sequence[str]
) -> Iterator[tuple[str, int, str]]:
    """(request id, position, event) of those that have an entry."""
    for some in _parts(request_ids):
        if connection.dialect.name == "postgresql":
            # PostgreSQL knows no NUL, and no entry has one in its id.
            some = [name for name in some if "\x00" not in name]
            yield from connection.exec_driver_sql(
                "SELECT request_id, position, event FROM entries WHERE request_id = ANY(%s)",
                (some,),
            )
            continue
        query = select(entries.c.request_id, entries.c.position, entries.c.event)
        yield from connection.execute(query.where(entries.c.request_id.in_(some)))


def kept_refusals(connection: Connection, content_hashes: Sequence[bytes]) -> Iterator[bytes]:
    """Those of `content_hashes` that were kept before."""
    for some in _parts(content_hashes):
        query = select(refused_events.c.content_hash)
        found = connection.execute(query.where(refused_events.c.content_hash.in_(some)))
        yield from (bytes(content_hash) for content_hash in found.scalars())


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Adds rows that have every column."""
    _insert(connection, table, rows, "")


def add_rows(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Adds the counts of rows to those of the rows with the same keys, where there are any."""
    names = table.columns.keys()
    counts = [name for name in names if name not in keys]
    sums = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    conflict = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sums}"
    _insert(connection, table, rows, conflict)


def put_rows(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Adds rows, in the place of those with the same keys."""
    rest = [column.name for column in table.columns if column.name not in keys]
    sets = ", ".join(f"{name} = excluded.{name}" for name in rest)
    _insert(connection, table, rows, f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sets}")


def _insert(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], conflict: str
) -> None:
    names = table.columns.keys()
    if connection.dialect.name == "postgresql":
        # One array a column: a row costs no statement of its own.
        arrays = ", ".join(f"%s::{_array_type(table, name)}" for name in names)
        statement = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays})"
        columns = tuple([row[name] for row in rows] for name in names)
        connection.exec_driver_sql(f"{statement} {conflict}", columns)
        return
    marks = ", ".join("?" for _ in names)
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks}) {conflict}"
    # Of more than one name, a tuple.
    connection.exec_driver_sql(statement, list(map(itemgetter(*names), rows)))


def _array_type(table: Table, name: str) -> str:
    return {"BIGINT": "bigint[]", "TEXT": "text[]", "BLOB": "bytea[]", "BYTEA": "bytea[]"}[
        str(table.columns[name].type).partition("(")[0]
    ]


def _parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    for start in range(0, len(values), _LOOKUP_MAX):
        yield values[start : start + _LOOKUP_MAX]
