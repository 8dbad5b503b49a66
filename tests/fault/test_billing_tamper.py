"""Every byte of an entry, flipped in the file behind the database's back, is found and located."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import select

from billing.ledger import Ledger
from billing.ledger_schema import entries
from billing.ledger_sqlite import LEDGER_FILE, SqliteStore
from billing.ledger_verify import Verification, verify_ledger
from billing.meter import Head, Submission
from billing.metrics import BillingMetrics
from billing.price_book_file import load_price_book
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent

NOW = 1_755_000_000 * 10**9
COUNT = 9
BROKEN = 5


def _event(number: int) -> UsageEvent:
    return UsageEvent(
        request_id=f"request-{number:04}",
        schema_version=1,
        tenant_id=TenantId("acme"),
        model="demo",
        start_time_ns=NOW,
        end_time_ns=NOW + number,
        end_reason=EndReason.STOP,
        tokens=TokenCounts(100 + number, 64, 0, 64, 0, 0, 36 + number, 7),
        node="n",
        client_request_id="",
        ttft_ns=None,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Head, Sequence[bytes]]:
    """A closed ledger, the end of its chain, and stored pieces of one of its rows."""
    directory = tmp_path_factory.mktemp("ledger")
    store = SqliteStore(directory)
    ledger = Ledger(store, load_price_book(None), lambda: NOW + 10**9, BillingMetrics())
    ledger.record([Submission(_event(n), b"") for n in range(1, COUNT + 1)]).result(30)
    row = store.read(lambda c: c.execute(select(entries).where(entries.c.position == BROKEN)).one())
    head = ledger.head
    ledger.close()
    store.close()
    return directory, head, (row.event.encode(), row.hash)


def _verified(directory: Path, head: Head) -> Verification:
    store = SqliteStore(directory)
    try:
        return store.read(lambda connection: verify_ledger(connection, head))
    finally:
        store.close()


def test_the_ledger_as_written_holds(written: tuple[Path, Head, Sequence[bytes]]) -> None:
    directory, head, _ = written
    assert _verified(directory, head).problem == ""


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_of_an_entry_is_found_where_it_is(
    tmp_path: Path, written: tuple[Path, Head, Sequence[bytes]], mask: int
) -> None:
    directory, head, pieces = written
    shutil.copytree(directory, tmp_path / "copy")
    path = tmp_path / "copy" / LEDGER_FILE
    sound = path.read_bytes()
    for piece in pieces:
        assert sound.count(piece) == 1
        start = sound.index(piece)
        for offset in range(start, start + len(piece), 5):
            flipped = bytearray(sound)
            flipped[offset] ^= mask
            path.write_bytes(flipped)
            found = _verified(tmp_path / "copy", head)
            assert (found.broken_position, bool(found.problem)) == (BROKEN, True), offset - start


def test_a_file_with_a_ruined_page_is_reported_and_never_called_good(
    tmp_path: Path, written: tuple[Path, Head, Sequence[bytes]]
) -> None:
    directory, head, pieces = written
    shutil.copytree(directory, tmp_path / "copy")
    path = tmp_path / "copy" / LEDGER_FILE
    ruined = bytearray(path.read_bytes())
    page = ruined.index(pieces[0]) // 4096 * 4096
    ruined[page : page + 4096] = bytes(4096)
    path.write_bytes(ruined)
    found = _verified(tmp_path / "copy", head)
    assert found.problem
    assert found.broken_position == found.head.position + 1
