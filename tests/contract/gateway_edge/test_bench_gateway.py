"""`kvtier bench gateway` measures what it says, whatever the figures are."""

import json

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gateway.bench import gateway as bench
from gateway.bench.gateway import _result, gateway, measure


def test_every_request_is_timed_through_a_real_gateway() -> None:
    result = measure(Console(stderr=True, quiet=True), rounds=1, requests=1)
    json.dumps(result)
    assert result["worker_first_token_p50_ms"] >= bench.FIRST_MS
    assert result["gateway_first_token_p50_ms"] >= bench.FIRST_MS
    assert result["requests_per_second"] > 0
    assert result["gateway_cpu_ms_per_request"] > 0
    assert (result["clients"], result["rounds"]) == (32, 1)


@pytest.mark.parametrize(
    ("overhead", "rate", "held"), [(2.9, 501.0, True), (3.1, 501.0, False), (2.9, 499.0, False)]
)
def test_a_limit_that_is_missed_is_told_and_ends_with_1(
    overhead: float, rate: float, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [([60.0 + overhead] * 4, [60.0] * 4)] * 3
    result = _result(first, [(rate, 0.001)] * 3, 20)
    assert result["held"] == held
    assert result["overhead_first_token_p50_ms"] == pytest.approx(overhead)
    monkeypatch.setattr(bench, "measure", lambda *_: result)
    app = typer.Typer()
    app.command()(gateway)
    for words in ([], ["--json"]):
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == (0 if held else 1)
    assert json.loads(ended.stdout)["held"] == held
