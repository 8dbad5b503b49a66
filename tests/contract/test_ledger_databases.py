"""What a ledger promises of its database, on SQLite and on PostgreSQL: one writer, tables that are
those of the schema, old files that go on, and a lost connection that loses nothing.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import create_engine, text

from billing.checkpoint_check import Trust
from billing.correction import CorrectionAsk, CorrectionKind
from billing.errors import (
    LedgerForeignError,
    LedgerLockedError,
    LedgerReadOnlyError,
    LedgerTooNewError,
    LedgerUnavailableError,
)
from billing.ledger import Ledger
from billing.ledger_guards import missing_guards
from billing.ledger_postgres import PostgresStore
from billing.ledger_schema import KEPT_TABLES, metadata
from billing.ledger_sqlite import LEDGER_FILE, SqliteStore
from billing.ledger_store import LedgerStore
from billing.ledger_verify import verify_ledger
from billing.meter import RecordStatus, Submission
from billing.metrics import BillingMetrics
from billing.price_book_file import load_price_book
from billing.settings import BillingSettings
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent, event_from_text
from tests.postgres import PostgresServer

NOW = 1_755_000_000 * 10**9
Open = Callable[[], LedgerStore]


def event(name: str, **changes: Any) -> UsageEvent:
    fields: dict[str, Any] = {
        "request_id": name,
        "schema_version": 1,
        "tenant_id": TenantId("acme"),
        "model": "demo",
        "start_time_ns": NOW,
        "end_time_ns": NOW + 5,
        "end_reason": EndReason.STOP,
        "tokens": TokenCounts(100, 64, 0, 64, 0, 0, 36, 7),
        "node": "n",
        "client_request_id": "",
        "ttft_ns": None,
    }
    return UsageEvent(**fields | changes)


def ledger_of(store: LedgerStore) -> Ledger:
    return Ledger(store, load_price_book(None), lambda: NOW + 10**9, BillingMetrics())


@pytest.fixture(params=["sqlite", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same database again and again."""
    opened: list[LedgerStore] = []
    url = ""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").new_database()

    def open_() -> LedgerStore:
        opened.append(PostgresStore(url) if url else SqliteStore(tmp_path))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def test_the_tables_are_those_of_the_schema_and_all_are_guarded(open_store: Open) -> None:
    store = open_store()
    with store.writer() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert missing_guards(connection, KEPT_TABLES) == []


def test_one_process_writes_at_a_time_and_the_next_may_when_it_has_ended(open_store: Open) -> None:
    first = open_store()
    ledger = ledger_of(first)
    with pytest.raises(LedgerLockedError, match="another billing service"):
        open_store()
    ledger.close()
    first.close()
    assert open_store().ledger_id == first.ledger_id


def test_a_newer_ledger_is_refused_and_left_alone(open_store: Open) -> None:
    store = open_store()
    with store.writer() as connection, connection.begin():
        connection.execute(
            text(
                "DROP TRIGGER ledger_meta_no_update"
                + (" ON ledger_meta" if connection.dialect.name == "postgresql" else "")
            )
        )
        connection.execute(text("UPDATE ledger_meta SET value = '9' WHERE key = 'format_version'"))
    store.close()
    for _ in range(2):
        with pytest.raises(LedgerTooNewError, match="format 9"):
            open_store()


def test_names_with_nul_and_any_letter_are_kept_on_either_database(open_store: Open) -> None:
    store = open_store()
    ledger = ledger_of(store)
    strange = "naïve ☃ \u202e \x00 \\x00 {1,2} NULL '\""
    kept, nul, odd = ledger.record(
        [
            Submission(event("a", client_request_id=strange, node=strange), b"\x00\xff"),
            Submission(event("b\x00"), b"\x00\x01"),
            Submission(event("{NULL}'\"☃"), b""),
        ]
    ).result(30)
    assert (kept.status, odd.status) == (RecordStatus.ACCEPTED, RecordStatus.ACCEPTED)
    assert (nul.status, nul.reason) == (RecordStatus.REJECTED, "INVALID_TEXT")
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    (again,) = ledger.record([Submission(event("{NULL}'\"☃"), b"")]).result(30)
    assert again.status is RecordStatus.DUPLICATE
    ledger.close()


def test_batches_of_any_size_are_entered_whole_whatever_their_words(open_store: Open) -> None:
    """Rows go to SQLite so many a statement, to PostgreSQL in a stream with letters of its own."""
    store = open_store()
    ledger = ledger_of(store)
    words = ("\\N", "\\.", "a\\tb", "", "{}", "'\"", None)
    count = 0
    for size in (1, 44, 45, 46, 91, 300):
        batch = [
            event(f"{size}-{n}", project_id=words[n % 7], client_request_id=words[n % 5] or "")
            for n in range(size)
        ]
        outcomes = ledger.record([Submission(each, b"") for each in batch]).result(30)
        assert {outcome.status for outcome in outcomes} == {RecordStatus.ACCEPTED}
        count += size
    found = store.read(lambda c: verify_ledger(c, ledger.head))
    assert (found.problem, found.entry_count, found.posting_count) == ("", count, 4 * count)
    again = ledger.record([Submission(each, b"") for each in batch]).result(30)
    assert {outcome.status for outcome in again} == {RecordStatus.DUPLICATE}
    ledger.close()


def test_an_older_file_is_brought_to_todays_format_and_goes_on(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden/billing/ledger_format_1.sqlite"
    shutil.copy(golden, tmp_path / LEDGER_FILE)
    store = SqliteStore(tmp_path)
    ledger = ledger_of(store)
    assert (ledger.head.position, ledger.head.refused_count) == (12, 3)
    assert ledger.head.hash.hex().startswith("ab6d67d064407677")
    found = store.read(lambda c: verify_ledger(c, ledger.head))
    assert (found.problem, found.unrated_count, found.refused_count) == ("", 1, 3)
    with store.writer() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert missing_guards(connection, KEPT_TABLES) == []
    (new,) = ledger.record([Submission(event("new"), b"")]).result(30)
    assert new.position == 13
    ledger.close()
    store.close()
    again = SqliteStore(tmp_path)
    assert again.ledger_id == store.ledger_id == "e9843ea0-8b95-4cc8-b2e6-d361b5000631"
    again.close()


def test_a_file_of_format_2_is_brought_to_todays_format_and_goes_on(tmp_path: Path) -> None:
    """It has corrections, a checkpoint, what was kept aside, and events with every key of then."""
    golden = Path(__file__).parents[1] / "golden/billing/ledger_format_2.sqlite"
    shutil.copy(golden, tmp_path / LEDGER_FILE)
    store = SqliteStore(tmp_path)
    ledger = ledger_of(store)
    assert (ledger.head.position, ledger.head.refused_count) == (13, 2)
    assert ledger.head.hash.hex().startswith("95761e16fc7dad66")
    key = bytes.fromhex("4d626e412d8c922bcf1c31bffb10a1a731a5855e1dc0aa5594bdf1d0e6fee871")
    found = store.read(lambda c: verify_ledger(c, ledger.head, trust=Trust(public_key=key)))
    assert (found.problem, found.unrated_count, found.refused_count) == ("", 1, 2)
    assert found.checkpoint_count == 1
    with store.writer() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert missing_guards(connection, KEPT_TABLES) == []
    stored = store.read(lambda c: c.execute(text("SELECT event FROM entries")).scalars().all())
    events = [event_from_text(each) for each in stored if not each.startswith('{"correction"')]
    assert len(events) == 11
    outcomes = ledger.record([Submission(each, b"") for each in events]).result(30)
    assert {each.status for each in outcomes} == {RecordStatus.DUPLICATE}
    ask = CorrectionAsk("c3", CorrectionKind.CHARGE, "req-00003", "more", "ann", Decimal(1))
    assert ledger.correct(ask).result(30).position == 14
    (new,) = ledger.record([Submission(event("new"), b"")]).result(30)
    assert new.position == 15
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    ledger.close()
    store.close()


def test_an_upgrade_that_fails_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden/billing/ledger_format_1.sqlite"
    path = tmp_path / LEDGER_FILE
    shutil.copy(golden, path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection, connection.begin():
        connection.execute(text("CREATE TABLE checkpoints (mine TEXT)"))
    with pytest.raises(LedgerUnavailableError, match="checkpoints already exists"):
        SqliteStore(tmp_path)
    with engine.connect() as connection, connection.begin():
        columns = connection.execute(text("SELECT name FROM pragma_table_info('entries')"))
        assert "kind" not in columns.scalars().all()
        version = text("SELECT value FROM ledger_meta WHERE key = 'format_version'")
        assert connection.execute(version).scalar_one() == "1"
        connection.execute(text("DROP TABLE checkpoints"))
    engine.dispose()
    store = SqliteStore(tmp_path)
    ledger = ledger_of(store)
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    ledger.close()
    store.close()


def test_a_session_that_the_database_ends_is_replaced_and_nothing_is_lost_or_doubled(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.new_database()
    store = PostgresStore(url)
    ledger = ledger_of(store)
    ledger.record([Submission(event("a"), b"")]).result(30)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
    with pytest.raises(LedgerUnavailableError):
        ledger.record([Submission(event("b"), b"")]).result(30)
    outcomes = ledger.record([Submission(event(name), b"") for name in "abc"]).result(30)
    assert [o.position for o in outcomes] == [1, 2, 3]
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    with pytest.raises(LedgerLockedError):
        PostgresStore(url)
    ledger.close()
    store.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_does_not_keep_every_text_is_refused(
    postgres_server: PostgresServer, encoding: str
) -> None:
    url = postgres_server.new_database(encoding)
    with pytest.raises(LedgerForeignError, match=f"keeps text as {encoding}"):
        PostgresStore(url)


def test_who_lost_the_lock_writes_nothing_and_goes_on_from_what_the_other_wrote(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.new_database()
    store = PostgresStore(url)
    ledger = ledger_of(store)
    ledger.record([Submission(event("a"), b"")]).result(30)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
    usurper_store = PostgresStore(url)
    usurper = ledger_of(usurper_store)
    assert usurper.record([Submission(event("b"), b"")]).result(30)[0].position == 2
    for _ in range(2):
        with pytest.raises(LedgerUnavailableError):
            ledger.record([Submission(event("c"), b"")]).result(30)
    usurper.close()
    usurper_store.close()
    (outcome,) = ledger.record([Submission(event("c"), b"")]).result(30)
    assert outcome.position == 3
    assert store.read(lambda c: verify_ledger(c, ledger.head)).problem == ""
    ledger.close()
    store.close()


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("nonsense", LedgerForeignError, "postgresql://"),
        ("mysql://root:secret@x/y", LedgerForeignError, "postgresql://"),
        ("postgresql://me:secret@/x?host=/nowhere", LedgerUnavailableError, r"me:\*\*\*@"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_without_telling_its_password(
    url: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        PostgresStore(url)
    assert "secret" not in str(refused.value)


def test_a_user_who_may_not_write_is_refused(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    PostgresStore(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(LedgerReadOnlyError, match="permission denied"):
        PostgresStore(url.replace("kvtier@", "guest@"))


def test_a_database_of_something_else_is_refused(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE guests (name text)")
    with pytest.raises(LedgerForeignError, match="not a ledger of kvtier"):
        PostgresStore(url)


def test_a_url_and_its_password_do_not_show_in_the_settings() -> None:
    settings = BillingSettings.model_validate({"database_url": "postgresql://me:secret@x/y"})
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings.model_dump(mode="json"))
    with pytest.raises(ValidationError):
        BillingSettings.model_validate({"database_url": 7})


def test_opening_an_up_to_date_ledger_loads_no_migrations(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from billing.ledger_sqlite import SqliteStore;"
        "SqliteStore(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
