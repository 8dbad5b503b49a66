"""`kvtier usage` as a person runs it, against a billing process of its own."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from billing.commands import app
from kvtier.v1 import usage_pb2, usage_pb2_grpc

END = 1_755_000_000 * 10**9
"""12 August 2025, 12:00 UTC."""


@dataclass
class Printed:
    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Printed]


def _event(
    request_id: str, tenant: str, hit: int, miss: int, output: int, written: int = 0
) -> usage_pb2.UsageEvent:
    event = usage_pb2.UsageEvent(
        request_id=request_id,
        schema_version=1,
        tenant_id=tenant,
        model="demo",
        end_reason=usage_pb2.END_REASON_STOP,
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=hit + miss,
            hit_tokens=hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(ssd=hit),
            miss_tokens=miss,
            completion_tokens=output,
            cache_write_tokens=written,
            cache_write_ttl_class="1h" if written else "",
        ),
    )
    event.start_time.FromNanoseconds(END - 10**9)
    event.end_time.FromNanoseconds(END)
    return event


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("billing")
    command = [sys.executable, "-m", "billing", "--set", "listen=127.0.0.1:0"]
    command += ["--set", "security.development=true"]
    command += ["--set", f"data_directory={directory}", "--set", "log.level=ERROR"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listen = json.loads(process.stdout.readline())["listen"]
        with grpc.insecure_channel(listen) as channel:
            usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(
                usage_pb2.RecordUsageRequest(
                    events=[
                        _event("a", "acme", 12_345_600, 1, 77),
                        _event("b", "acme", 0, 64, 5, written=64),
                        _event("c", "beta", 64, 64, 0),
                    ]
                ),
                timeout=30,
            )
        yield listen
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture
def run(address: str) -> Run:
    def invoke(*arguments: str, to: str = address) -> Printed:
        result = CliRunner().invoke(app, [*arguments, "--address", to])
        return Printed(result.exit_code, result.stdout, result.stderr)

    return invoke


def test_a_report_reads_the_same_in_every_format(run: Run) -> None:
    data = json.loads(run("report", "--by", "tenant", "--json").stdout)
    assert [row["tenant"] for row in data["rows"]] == ["acme", "beta"]
    acme = data["rows"][0]
    assert acme == {
        "tenant": "acme",
        "request_count": 2,
        "prompt_tokens": 12_345_665,
        "hit_tokens": 12_345_600,
        "miss_tokens": 65,
        "output_tokens": 82,
        "cache_writes": {"1h": 64},
        "hit_rate": 0.999995,
        "amount": "1.234789",
        "corrected": "0",
        "saved": "11.11104",
        "net_saved": "11.11104",
        "storage_token_seconds": {},
        "currency": "CNY",
    }
    printed = run("report", "--by", "tenant", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row.pop("cache_writes") for row in rows] == ["1h=64", ""]
    assert [row.pop("storage_token_seconds") for row in rows] == ["", ""]
    for row in data["rows"]:
        del row["cache_writes"], row["storage_token_seconds"]
    assert rows == [{key: str(value) for key, value in row.items()} for row in data["rows"]]
    table = run("report", "--by", "tenant").stdout
    for text in ("12,345,665", "100.0%", "1.234789", "11.11104", "beta", "50.0%", "1h 64"):
        assert text in table


def test_charges_are_exported_exactly_in_every_format(run: Run, tmp_path: Path) -> None:
    data = json.loads(run("export", "--format", "json").stdout)
    assert data["schema"] == "kvtier"
    assert data["rows"][0] == {
        "day": "2025-08-12",
        "tenant": "acme",
        "project": None,
        "key": None,
        "model": "demo",
        "token_class": "hit",
        "cache_write_ttl_class": "",
        "quantity": 12_345_600,
        "unit_price": "0.1",
        "unit_tokens": 1_000_000,
        "amount": "1.23456",
        "currency": "CNY",
        "price_book_version": "example-2024-08",
        "rule": "",
    }
    (total,) = json.loads(run("report", "--json").stdout)["totals"]
    assert sum(Decimal(row["amount"]) for row in data["rows"]) == Decimal(total["amount"])
    cells = list(csv.DictReader(io.StringIO(run("export").stdout)))
    assert cells == [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in data["rows"]
    ]
    out = tmp_path / "charges.parquet"
    assert run("export", "--format", "parquet", "--out", str(out)).stdout == ""
    table = pyarrow.parquet.read_table(out)
    assert table.schema.metadata == {b"schema": b"kvtier"}
    assert [str(row["amount"].normalize()) for row in table.to_pylist()] == [
        str(Decimal(row["amount"]).normalize()) for row in data["rows"]
    ]
    only = json.loads(run("export", "--tenant", "beta", "--format", "json").stdout)["rows"]
    assert only == [row for row in data["rows"] if row["tenant"] == "beta"]
    unwritable = run("export", "--out", str(tmp_path / "no" / "such"))
    assert (unwritable.exit_code, unwritable.stdout) == (1, "")
    assert "cannot be written" in unwritable.stderr


def test_charges_are_exported_in_focus_columns(run: Run, tmp_path: Path) -> None:
    exported = ("export", "--schema", "focus", "--provider", "ACME Cloud")
    data = json.loads(run(*exported, "--format", "json").stdout)
    assert data["focus_version"] == "1.2"
    own = json.loads(run("export", "--format", "json").stdout)["rows"]
    assert [row["BilledCost"] for row in data["rows"]] == [row["amount"] for row in own]
    assert {row["ProviderName"] for row in data["rows"]} == {"ACME Cloud"}
    out = tmp_path / "focus.parquet"
    run(*exported, "--format", "parquet", "--out", str(out))
    rows = pyarrow.parquet.read_table(out).to_pylist()
    for row in rows:
        assert row["PricingQuantity"] * row["ContractedUnitPrice"] == row["ContractedCost"]
        assert row["ChargePeriodStart"].isoformat() == "2025-08-12T00:00:00+00:00"
    first = next(csv.DictReader(io.StringIO(run(*exported).stdout)))
    assert first["SkuMeter"] == "hit tokens"


def test_the_totals_row_is_the_exact_sum(run: Run) -> None:
    data = json.loads(run("report", "--json").stdout)
    (total,) = data["totals"]
    for key in ("amount", "saved"):
        assert Decimal(total[key]) == sum(Decimal(row[key]) for row in data["rows"])
    assert total["request_count"] == 3
    assert total["amount"] in run("report").stdout


def test_an_invoice_adds_up_in_every_format(run: Run) -> None:
    data = json.loads(run("invoice", "--tenant", "acme", "--json").stdout)
    assert (data["tenant"], data["currency"], data["total"]) == ("acme", "CNY", "1.234789")
    assert sum(Decimal(line["amount"]) for line in data["lines"]) == Decimal(data["total"])
    assert data["lines"][0] == {
        "model": "demo",
        "token_class": "hit",
        "cache_write_ttl_class": "",
        "quantity_tokens": 12_345_600,
        "unit_price": "0.1",
        "unit_tokens": 1_000_000,
        "amount": "1.234560",
        "price_book_version": "example-2024-08",
        "rule": "",
    }
    assert (data["terms"], data["adjustments"], data["credits"]) == ("", [], [])
    printed = run("invoice", "--tenant", "acme", "--format", "csv").stdout
    amounts = [row["amount"] for row in csv.DictReader(io.StringIO(printed))]
    assert amounts == [line["amount"] for line in data["lines"]]
    assert data["cache_writes"] == {"1h": 64}
    table = run("invoice", "--tenant", "acme").stdout
    assert "of miss and output, written to the cache: 1h 64" in table
    for text in (*amounts, "12,345,600", data["total"], data["saved"]):
        assert text in table
    page = run("invoice", "--tenant", "acme", "--format", "html").stdout
    assert page.startswith("<!doctype html>")
    for text in (*amounts, "12,345,600", data["total"], data["saved"], "64 tokens (1h)"):
        assert text in page


def test_a_period_is_read_as_utc_unless_it_says_otherwise(run: Run) -> None:
    def count(*period: str) -> int:
        rows = json.loads(run("report", "--by", "", "--json", *period).stdout)["rows"]
        return sum(row["request_count"] for row in rows)

    assert count("--from", "2025-08-12", "--to", "2025-08-13") == 3
    assert count("--from", "2025-08-13") == 0
    assert count("--to", "2025-08-12T20:00:00+08:00") == 0
    assert count("--to", "2025-08-12T12:00:01Z") == 3


def test_verify_says_that_the_ledger_holds(run: Run) -> None:
    data = json.loads(run("verify", "--json").stdout)
    assert (data["verified"], data["entries"], data["postings"]) == (True, 3, 10)
    assert (data["first_broken"], data["problem"]) == (None, "")
    assert len(data["head_hash"]) == 64
    printed = run("verify")
    assert printed.exit_code == 0
    assert "The ledger holds: 3 entries" in printed.stdout
    assert data["head_hash"] in printed.stdout


def test_a_request_is_shown_by_its_id(run: Run) -> None:
    (entry,) = json.loads(run("show", "b", "--json").stdout)["entries"]
    assert (entry["position"], entry["tenant"], entry["miss_tokens"]) == (2, "acme", 64)
    assert (entry["amount"], entry["currency"]) == ("0.000074", "CNY")
    assert (entry["project"], entry["leases"], entry["ttft_seconds"]) == (None, None, None)
    printed = run("show", "b", "--tenant", "acme").stdout
    for words in ("request id", "0.000074", "cache write tokens", "1h", "STOP"):
        assert words in printed
    assert "-" in next(line for line in printed.splitlines() if line.startswith("project"))


def test_prices_show_the_book_and_where_it_comes_from(run: Run) -> None:
    (version,) = json.loads(run("prices", "--json").stdout)["versions"]
    assert version["prices"] == [
        {
            "model": "*",
            "hit": "0.1",
            "miss": "1",
            "output": "2",
            "cache_write": {},
            "unit_tokens": 1_000_000,
            "rules": [],
        }
    ]
    table = run("prices").stdout
    assert "example-2024-08" in table
    assert "EXAMPLE: DeepSeek launch prices" in table


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [
        (["invoice", "--tenant", "nobody"], 1, "TENANT_UNKNOWN"),
        (["show", "nobody"], 1, "EVENT_UNKNOWN"),
        (["show", "a", "--tenant", "beta"], 1, "EVENT_UNKNOWN"),
        (["report", "--by", "week"], 1, "INVALID_GROUP"),
        (["report", "--from", "2026-01-02", "--to", "2026-01-01"], 1, "INVALID_PERIOD"),
        (["report", "--from", "yesterday"], 2, "yesterday is not a time"),
        (["report", "--from", "0001-01-01"], 1, "INVALID_PERIOD"),
        (["report", "--to", "9999-12-31T23:59:59-12:00"], 2, "is not a time"),
        (["report", "--by", "\udcff"], 2, "UTF-8"),
        (["report", "--tenant", "\udcff"], 2, "UTF-8"),
        (["invoice", "--tenant", "\udcff"], 2, "UTF-8"),
        (["invoice"], 2, "--tenant"),
        (["verify", "--checkpoint", "nowhere.json"], 2, "nowhere.json"),
        (["verify", "--public-key", "nowhere.pem"], 2, "nowhere.pem"),
        (["verify", "--checkpoint", __file__], 2, "--checkpoint"),
        (["verify", "--public-key", __file__], 2, "--public-key"),
        (["verify", "--file", "nowhere.sqlite"], 1, "LEDGER_UNAVAILABLE"),
        (["verify", "--file", __file__], 1, "LEDGER_FOREIGN"),
    ],
)
def test_a_mistake_is_told_on_standard_error_alone(
    run: Run, arguments: list[str], exit_code: int, word: str
) -> None:
    printed = run(*arguments)
    assert printed.exit_code == exit_code
    assert printed.stdout == ""
    assert word in printed.stderr


@pytest.mark.parametrize(
    "command",
    [["report"], ["invoice", "--tenant", "a"], ["verify"], ["prices"], ["checkpoint"], ["key"]],
)
def test_a_service_that_is_not_there_is_one_clear_line(run: Run, command: list[str]) -> None:
    printed = run(*command, to="127.0.0.1:1")
    assert (printed.exit_code, printed.stdout) == (1, "")
    assert printed.stderr.count("\n") == 1
    assert "BILLING_UNREACHABLE" in printed.stderr
    assert "127.0.0.1:1" in printed.stderr


def test_nothing_used_is_said_so(run: Run) -> None:
    printed: Any = run("report", "--from", "2030-01-01")
    assert printed.stdout == "No usage in this period.\n"
    assert json.loads(run("report", "--from", "2030-01-01", "--json").stdout) == {
        "rows": [],
        "totals": [],
    }
