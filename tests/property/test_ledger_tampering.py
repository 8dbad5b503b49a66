"""Any byte of any row of the ledger, changed behind the database's back, is found; and, in an entry
or a posting, found where it is.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.checkpoint_check import Kept, Trust
from billing.errors import BillingError
from billing.ledger import Ledger
from billing.ledger_file import verify_file
from billing.ledger_key import KeyFile
from billing.ledger_schema import EVIDENCE_TABLES, KEPT_TABLES
from billing.ledger_signer import CheckpointRule, LedgerSigner
from billing.ledger_sqlite import LEDGER_FILE, SqliteStore
from billing.meter import Submission
from billing.metrics import BillingMetrics
from billing.price_book_file import load_price_book
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent

CHAINED_TABLES = [name for name in KEPT_TABLES if name not in EVIDENCE_TABLES]
NOW = 1_755_000_000 * 10**9
COUNT = 12


def _event(number: int) -> UsageEvent:
    time_ns = NOW if number % 5 else 10**18  # before any price
    return UsageEvent(
        request_id=f"request-{number:04}",
        schema_version=1,
        tenant_id=TenantId("acme" if number % 2 else "beta"),
        model="demo",
        start_time_ns=time_ns,
        end_time_ns=time_ns + number,
        end_reason=EndReason.STOP,
        tokens=TokenCounts(100 + number, 64, 0, 64, 0, 0, 36 + number, 7, number % 3, ""),
        node="n",
        client_request_id="mine" if number % 4 == 0 else "",
        ttft_ns=None,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """A closed ledger's file, and its last checkpoint as somebody keeps it elsewhere."""
    directory = tmp_path_factory.mktemp("ledger")
    store = SqliteStore(directory)
    signer = LedgerSigner(store.ledger_id, KeyFile(directory), CheckpointRule(entries=4))
    ledger = Ledger(store, load_price_book(None), lambda: NOW + 10**9, BillingMetrics(), signer)
    for number in range(1, COUNT + 1):
        event = _event(number)
        submissions = [Submission(event, b"good"), Submission(event, b"again")]
        if number % 4 == 0:
            ledger.rotate_key().result(30)
            conflict = replace(event, node="other")
            submissions.append(Submission(conflict, f"conflict {number}".encode()))
        ledger.record(submissions).result(30)
    kept = ledger.checkpoint().result(30)
    (key,) = [each for each in ledger.keys if each.key_id == kept.key_id]
    ledger.close()
    store.close()
    with closing(sqlite3.connect(directory / LEDGER_FILE)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return directory / LEDGER_FILE, Kept(kept, key.public_key)


def test_the_ledger_as_written_holds(written: tuple[Path, Kept]) -> None:
    path, kept = written
    found = verify_file(path, Trust((kept,)))
    assert (found.problem, found.entry_count, found.refused_count) == ("", COUNT, 3)
    assert found.checkpoint_count >= 3


@given(data=st.data())
@settings(max_examples=150)
def test_any_flipped_byte_of_any_row_is_found_and_located(
    written: tuple[Path, Kept], data: st.DataObject
) -> None:
    path, kept = written
    with _copied(path) as copy:
        table = data.draw(st.sampled_from(CHAINED_TABLES))
        with closing(sqlite3.connect(copy)) as connection:
            key = "position, line" if table == "postings" else "1"
            query = f"SELECT * FROM {table} ORDER BY {key}"
            columns = [each[0] for each in connection.execute(query).description]
            rows = connection.execute(query).fetchall()
            row = data.draw(st.sampled_from(rows))
            index = data.draw(st.integers(0, len(columns) - 1))
            changed = _flipped(row[index], data.draw)
            if changed == row[index]:
                return
            where = " AND ".join(f"{name} IS ?" for name in columns)
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            try:
                connection.execute(
                    f"UPDATE {table} SET {columns[index]} = ? WHERE {where}", (changed, *row)
                )
            except sqlite3.IntegrityError:
                return  # a name that is taken: the database itself does not let it be
            for _, sql in triggers:
                connection.execute(sql)
            connection.commit()
        try:
            found = verify_file(copy, Trust((kept,)))
        except BillingError:
            assert table == "ledger_meta"  # not a ledger, or not of a format that is known
            return
        assert found.problem, (table, columns[index], row, changed)
        if table in ("entries", "postings") and columns[index] != "position":
            assert found.broken_position == row[columns.index("position")]


@contextmanager
def _copied(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(shutil.copy(path, directory))


def _flipped(value: Any, draw: Any) -> Any:
    if value is None:
        return draw(st.sampled_from(["", "x", 0, 1]))
    if isinstance(value, int):
        return value ^ (1 << draw(st.integers(0, 62)))
    if not value:
        return b"\x01" if isinstance(value, bytes) else "x"
    at, mask = draw(st.integers(0, len(value) - 1)), draw(st.integers(1, 127))
    if isinstance(value, bytes):
        return value[:at] + bytes([value[at] ^ mask]) + value[at + 1 :]
    return value[:at] + chr(ord(value[at]) ^ mask) + value[at + 1 :]


def test_a_ledger_cut_at_any_entry_is_found_by_the_checkpoint_kept(
    written: tuple[Path, Kept],
) -> None:
    path, kept = written
    for last in range(COUNT):
        with _copied(path) as copy, closing(sqlite3.connect(copy)) as connection:
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            for table in ("postings", "entries", "checkpoints"):
                connection.execute(f"DELETE FROM {table} WHERE position > ?", (last,))
            for _, sql in triggers:
                connection.execute(sql)
            connection.commit()
            found = verify_file(copy, Trust((kept,)))
            assert found.broken_position == last + 1
