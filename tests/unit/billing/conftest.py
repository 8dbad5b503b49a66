"""Events, a price book and real ledgers for the till's unit tests."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine

from billing.budget_alert import Alert
from billing.checkpoint_check import Kept, Trust
from billing.ledger import Ledger
from billing.ledger_guards import drop_guards, make_guards
from billing.ledger_key import KeyFile
from billing.ledger_postgres import PostgresStore
from billing.ledger_schema import KEPT_TABLES
from billing.ledger_signer import CheckpointRule, LedgerSigner
from billing.ledger_sqlite import SqliteStore
from billing.ledger_store import LedgerStore
from billing.ledger_verify import Verification, verify_ledger
from billing.meter import Head, Outcome, Submission
from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent
from tests.postgres import PostgresServer

DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9
"""15 January 2027, 08:00 UTC."""

BOOK = """
format = 1
[[versions]]
name = "first"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "big-*"
hit = "0.5"
miss = "4"
output = "16"
[[versions.prices]]
model = "*"
hit = "0.1"
miss = "1"
output = "2"
[[versions]]
name = "second"
effective_time = 2027-01-15T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "*"
hit = "0.2"
miss = "1"
output = "3"
"""


def event_of(request_id: str = "r1", **changes: Any) -> UsageEvent:
    hit = changes.pop("hit", 128)
    miss = changes.pop("miss", 72)
    tokens = {
        "prompt": hit + miss,
        "hit": hit,
        "hit_gpu": 0,
        "hit_host": hit,
        "hit_ssd": 0,
        "hit_shared": 0,
        "miss": miss,
        "output": 10,
        "cache_write": 0,
        "cache_write_ttl_class": "",
    }
    tokens |= {name: changes.pop(name) for name in list(changes) if name in tokens}
    fields: dict[str, Any] = {
        "request_id": request_id,
        "schema_version": 1,
        "tenant_id": TenantId("acme"),
        "model": "demo",
        "start_time_ns": NOW - 2 * 10**9,
        "end_time_ns": NOW,
        "end_reason": EndReason.STOP,
        "node": "node-1",
        "client_request_id": "",
        "ttft_ns": 120_000_000,
    }
    return UsageEvent(tokens=TokenCounts(**tokens), **(fields | changes))


@dataclass
class Heard:
    """A listener that remembers."""

    commits: list[tuple[int, int]] = field(default_factory=list)
    """(events, batches) of each transaction."""
    failures: int = 0
    alerts: list[Alert] = field(default_factory=list)

    def committed(self, outcomes: Sequence[Outcome], batch_count: int, head: Head) -> None:
        self.commits.append((len(outcomes), batch_count))

    def alerted(self, alerts: Sequence[Alert], hold_count: int) -> None:
        self.alerts += alerts

    def failed(self, batch_count: int) -> None:
        self.failures += 1


@dataclass
class Clock:
    """The till's; a test may turn it."""

    now_ns: int = NOW


@dataclass
class Till:
    """An open ledger with the questions tests ask."""

    store: LedgerStore
    ledger: Ledger
    heard: Heard
    url: str = ""
    """Of its PostgreSQL."""
    clock: Clock = field(default_factory=Clock)

    def record(self, *events: UsageEvent) -> list[Outcome]:
        submissions = [Submission(event, repr(event).encode()) for event in events]
        return self.ledger.record(submissions).result(30)

    def verify(self, trust: Trust | None = None, committed: Head | None = None) -> Verification:
        head = committed or self.ledger.head
        return self.store.read(lambda connection: verify_ledger(connection, head, trust=trust))

    def checkpoint(self) -> Kept:
        """As somebody keeps it elsewhere."""
        made = self.ledger.checkpoint().result(30)
        (key,) = [each for each in self.ledger.keys if each.key_id == made.key_id]
        return Kept(made, key.public_key)

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """While nothing can be committed."""
        with self._other().connect() as connection, connection.begin():
            if self.url:
                connection.exec_driver_sql("LOCK TABLE entries IN EXCLUSIVE MODE")
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield

    def alter(self, *statements: str, guards: bool = False) -> None:
        """What somebody with the database and a SQL prompt can do; without `guards`, the triggers
        are away meanwhile.
        """
        with self._other().connect() as connection:
            if self.url:
                connection.exec_driver_sql("SELECT 1")
                connection.rollback()
            else:
                connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
                connection.commit()
            with connection.begin():
                if not guards:
                    drop_guards(connection, KEPT_TABLES)
                if self.url and not guards:
                    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
                for statement in statements:
                    connection.exec_driver_sql(statement)
                if not guards:
                    make_guards(connection, KEPT_TABLES)

    def _other(self) -> Any:
        path = getattr(self.store, "path", "")
        url = self.url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{path}"
        return create_engine(url, poolclass=NullPool)


@pytest.fixture
def usage_event() -> Callable[..., UsageEvent]:
    return event_of


@pytest.fixture
def now_ns() -> int:
    return NOW


@pytest.fixture
def book_text() -> str:
    return BOOK


@pytest.fixture
def book() -> PriceBook:
    return parse_price_book(BOOK, "test")


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a first start makes it. Tests have copies: making one takes longer than most."""
    store = SqliteStore(tmp_path_factory.mktemp("new-ledger"))
    store.close()
    return store.path


@pytest.fixture(scope="session")
def new_postgres_ledger(postgres_server: PostgresServer) -> str:
    """The same in a database."""
    url = postgres_server.new_database()
    PostgresStore(url).close()
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Of a new PostgreSQL ledger; "" for SQLite. Every test of a till runs on both."""
    if request.param == "sqlite":
        return ""
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database(like=request.getfixturevalue("new_postgres_ledger"))


@pytest.fixture
def open_till(
    tmp_path: Path, book: PriceBook, database_url: str, new_ledger: Path
) -> Iterator[Callable[..., Till]]:
    """Opens the ledger of a test; what is still open at the end is closed."""
    opened: list[Till] = []
    if not database_url:
        (tmp_path / "ledger").mkdir()
        shutil.copy(new_ledger, tmp_path / "ledger")

    def open_(
        book: PriceBook = book, rule: CheckpointRule | None = None, *, accept_new_key: bool = False
    ) -> Till:
        store: LedgerStore
        store = PostgresStore(database_url) if database_url else SqliteStore(tmp_path / "ledger")
        heard, clock = Heard(), Clock()
        try:
            key_file = KeyFile(tmp_path / "ledger")
            signer = LedgerSigner(store.ledger_id, key_file, rule, accept_new_key=accept_new_key)
            ledger = Ledger(store, book, lambda: clock.now_ns, heard, signer)
        except BaseException:
            store.close()
            raise
        till = Till(store, ledger, heard, database_url, clock)
        opened.append(till)
        return till

    yield open_
    for till in opened:
        till.close()


@pytest.fixture
def till(open_till: Callable[..., Till]) -> Till:
    return open_till()
