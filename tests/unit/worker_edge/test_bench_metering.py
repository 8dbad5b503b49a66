"""`kvtier bench metering`, small: it measures what it says, and the ledger holds afterwards."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.postgres import PostgresServer
from worker.bench.metering import metering


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_it_measures_the_whole_path_and_a_months_report(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    words = ["--json", "--events", "400", "--cost-events", "100", "--report-events", "5000"]
    if backend == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        words += ["--database-url", server.new_database()]
    app = typer.Typer()
    app.command()(metering)
    done = CliRunner().invoke(app, [*words, "--directory", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["backend"], found["verified"], found["events"]) == (backend, True, 400)
    for name in ("events_per_second", "request_cost_p99_ms", "report_seconds_10m_events"):
        assert found[name] > 0
    assert list(tmp_path.iterdir()) == []
