"""What keeps the ledger's tables append-only: triggers in the database itself.

SQLite has one for each verb; PostgreSQL a function that refuses, and triggers that call it,
TRUNCATE included. Whoever owns the database can take them away: `missing_guards` is how
verification sees it. Pure SQL, inside the caller's transaction.
"""

from collections.abc import Iterable

from sqlalchemy import Connection

__all__ = ["drop_guards", "make_guards", "missing_guards"]

_VERBS = {"sqlite": ("update", "delete"), "postgresql": ("update", "delete", "truncate")}
_FUNCTION = "kvtier_ledger_only_grows"


def make_guards(connection: Connection, tables: Iterable[str]) -> None:
    """Makes the triggers of `tables`, which have none."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f"CREATE OR REPLACE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the ledger only grows'; END $$"
        )
    for table in tables:
        for verb in _VERBS[connection.dialect.name]:
            connection.exec_driver_sql(_create(connection.dialect.name, table, verb))


def drop_guards(connection: Connection, tables: Iterable[str]) -> None:
    """For a migration that fills columns; it makes them again in the same transaction."""
    postgres = connection.dialect.name == "postgresql"
    for table in tables:
        for verb in _VERBS[connection.dialect.name]:
            of = f" ON {table}" if postgres else ""
            connection.exec_driver_sql(f"DROP TRIGGER {table}_no_{verb}{of}")


def missing_guards(connection: Connection, tables: Iterable[str]) -> list[str]:
    """Names of triggers that are gone or switched off."""
    dialect = connection.dialect.name
    wanted = {f"{table}_no_{verb}" for table in tables for verb in _VERBS[dialect]}
    query = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        if dialect == "sqlite"
        else "SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p"
        " ON p.oid = t.tgfoid WHERE c.relnamespace = current_schema()::regnamespace"
        f" AND p.proname = '{_FUNCTION}' AND t.tgenabled IN ('O', 'A')"
    )
    return sorted(wanted - set(connection.exec_driver_sql(query).scalars()))


def _create(dialect: str, table: str, verb: str) -> str:
    name = f"{table}_no_{verb}"
    if dialect == "sqlite":
        return (
            f"CREATE TRIGGER {name} BEFORE {verb.upper()} ON {table}"
            " BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
        )
    each = "STATEMENT" if verb == "truncate" else "ROW"
    return (
        f"CREATE TRIGGER {name} BEFORE {verb.upper()} ON {table}"
        f" FOR EACH {each} EXECUTE FUNCTION {_FUNCTION}()"
    )
