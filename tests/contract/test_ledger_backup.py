"""A ledger is copied while billing writes it, and put back, as docs/operations.md says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.cli.processes import ServiceProcess, start_service
from kvtier.v1 import usage_pb2 as pb
from kvtier.v1 import usage_pb2_grpc
from tests.postgres import PostgresServer, needed_postgres

NOW = 1_755_000_000 * 10**9
SQLITE_COPY = (
    "import sqlite3, sys; source, copy = map(sqlite3.connect, sys.argv[1:]);"
    " source.backup(copy); copy.close()"
)

Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[ServiceProcess] = []

    def start_(directory: Path, **settings: object) -> ServiceProcess:
        settings |= {"listen": "127.0.0.1:0", "data_directory": directory}
        running.append(start_service("billing", settings, tmp_path / "log"))
        return running[-1]

    yield start_
    for service in running:
        service.kill()


def record(service: ServiceProcess, numbers: range) -> list[int]:
    """Delivers so many events; the statuses of the answers."""
    events = []
    for number in numbers:
        tokens = pb.TokenUsage(prompt_tokens=number + 1, miss_tokens=number + 1)
        event = pb.UsageEvent(
            request_id=f"request-{number}",
            schema_version=1,
            tenant_id="acme",
            model="demo",
            end_reason=pb.END_REASON_STOP,
            tokens=tokens,
        )
        event.start_time.FromNanoseconds(NOW)
        event.end_time.FromNanoseconds(NOW + number)
        events.append(event)
    with grpc.insecure_channel(service.address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        answer = stub.RecordUsage(pb.RecordUsageRequest(events=events), timeout=30)
    return [outcome.status for outcome in answer.outcomes]


def kvtier(*words: str, good: bool = True) -> dict[str, Any]:
    command = (str(Path(sys.executable).with_name("kvtier")), *words, "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) is good, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def usage(service: ServiceProcess, *words: str, good: bool = True) -> dict[str, Any]:
    return kvtier("usage", *words, "--address", service.address, good=good)


def check_restored(old: ServiceProcess, back: ServiceProcess, kept: Path, later: Path) -> None:
    """The copy has what it had, says what it lacks, and takes that again, once."""
    assert usage(back, "verify", "--checkpoint", str(kept))["entries"] == 30
    assert not usage(back, "verify", "--checkpoint", str(later), good=False)["verified"]
    accepted, duplicate = pb.RECORD_STATUS_ACCEPTED, pb.RECORD_STATUS_DUPLICATE
    assert record(back, range(50)) == [duplicate] * 30 + [accepted] * 20
    assert usage(back, "verify")["entries"] == 50
    assert not old.running


def test_a_sqlite_ledger(start: Start, tmp_path: Path) -> None:
    billing = start(tmp_path / "billing")
    record(billing, range(30))
    kept, later, copy = (tmp_path / name for name in ("30.json", "50.json", "copy.sqlite"))
    usage(billing, "checkpoint", "--out", str(kept))
    source = str(tmp_path / "billing" / "ledger.sqlite")
    subprocess.run([sys.executable, "-c", SQLITE_COPY, source, str(copy)], check=True, timeout=60)
    record(billing, range(30, 50))
    usage(billing, "checkpoint", "--out", str(later))
    assert kvtier("usage", "verify", "--file", str(copy))["entries"] == 30
    billing.kill()
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(copy, again / "ledger.sqlite")
    shutil.copy(tmp_path / "billing" / "ledger_key.pem", again)
    check_restored(billing, start(again), kept, later)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = needed_postgres()
    yield server
    server.stop()


def test_a_postgresql_ledger(start: Start, tmp_path: Path, postgres: PostgresServer) -> None:
    for program in ("pg_dump", "pg_restore"):
        if shutil.which(program) is None:
            pytest.skip(f"NO LEDGER OF POSTGRESQL WAS BACKED UP: there is no {program}")
    first, second = postgres.new_database(), postgres.new_database()
    billing = start(tmp_path / "billing", database_url=first)
    record(billing, range(30))
    kept, later, dump = (tmp_path / name for name in ("30.json", "50.json", "ledger.dump"))
    usage(billing, "checkpoint", "--out", str(kept))
    copy = ["pg_dump", "--format=custom", f"--file={dump}", first]
    subprocess.run(copy, check=True, timeout=120)
    record(billing, range(30, 50))
    usage(billing, "checkpoint", "--out", str(later))
    billing.kill()
    back = ["pg_restore", "--exit-on-error", f"--dbname={second}", str(dump)]
    subprocess.run(back, check=True, timeout=120)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(tmp_path / "billing" / "ledger_key.pem", again)
    check_restored(billing, start(again, database_url=second), kept, later)
