"""`kvtier bench lookup` says what it promises, under the names that it promises."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from cache_service.bench import lookup as command
from cache_service.bench.lookup_settings import TRANSPORTS, LookupSettings
from cache_service.bench.lookup_tables import show
from kvtier.bench.errors import BenchError

RESULT_KEYS = {
    "cached_blocks",
    "keys_per_call",
    "clients",
    "p50_us",
    "p99_us",
    "keys_per_second",
    "service_cpu_us_per_key",
}


def settings(directory: Path, **other: object) -> LookupSettings:
    sizes: dict[str, object] = {
        "cached_blocks": (1_000,),
        "keys_per_call": (256,),
        "clients": (1, 2),
        "rounds": 2,
        "round_seconds": 0.05,
    }
    return LookupSettings(directory, **(sizes | other))  # type: ignore[arg-type]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_small_run_has_every_key_and_leaves_nothing(tmp_path, capsys, transport: str) -> None:
    result = json.loads(json.dumps(command.run(settings(tmp_path, transports=(transport,)))))
    assert capsys.readouterr().out == ""
    rows = result["results"]
    assert [(row["keys_per_call"], row["clients"]) for row in rows] == [
        (256, 1),
        (256, 2),
    ]
    for row in rows:
        assert set(row) >= RESULT_KEYS
        assert row["cached_blocks"] == 1_000
        assert row["transport"] == transport
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["keys_per_second"] > 0
        assert row["service_cpu_us_per_key"] > 0
    assert list(tmp_path.iterdir()) == []
    show(Console(width=100), result)
    text = capsys.readouterr().out
    assert "1,000" in text
    assert "…" not in text


def test_what_measures_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(BenchError, match="cache more blocks"):
        settings(tmp_path, keys_per_call=(1_001,))
    with pytest.raises(BenchError, match="at least one count"):
        settings(tmp_path, clients=())
    app = Typer()
    app.command()(command.lookup)
    outcome = CliRunner().invoke(app, ["--keys", "many", "--directory", str(tmp_path)])
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_quick_changes_only_what_was_not_given(tmp_path) -> None:
    app = Typer()
    app.command()(command.lookup)
    given = ["--cached", "1000", "--keys", "256", "--clients", "1", "--rounds", "1"]
    outcome = CliRunner().invoke(app, [*given, "--directory", str(tmp_path), "--quick", "--json"])
    assert outcome.exit_code == 0, outcome.output
    used = json.loads(outcome.stdout)["settings"]
    assert (used["cached_blocks"], used["rounds"]) == ([1000], 1)
    assert used["round_seconds"] == 0.5
