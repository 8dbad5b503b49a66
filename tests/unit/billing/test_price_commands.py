"""`kvtier usage prices`, `rate` and `rerate` as a person runs them."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing.commands import app
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from tests.unit.billing.price_books import HEAD, PRICE

BOOKS = Path(__file__).parents[3] / "billing" / "books"
END = 1_755_000_000 * 10**9
"""12 August 2025, 12:00 UTC."""

TERMS = """format = 1
[[terms]]
name = "contract"
tenant = "acme"
from = 2025-08-01T00:00:00Z
currency = "CNY"
decimals = 2
[[terms.discounts]]
name = "volume"
times = "0.5"
[[terms.credits]]
name = "welcome"
amount = "1"
from = 2025-08-01T00:00:00Z
until = 2025-12-01T00:00:00Z
"""

PEAK = ["--model", "deepseek-v4-pro", "--hit", "4096", "--miss", "128", "--output", "64"]


def run(*arguments: str, columns: str = "200") -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": columns})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("billing")
    book = directory / "book.toml"
    book.write_text(
        HEAD.replace('"test"', '"of the test"')
        + PRICE
        + '[[versions.prices.classes]]\nclass = "batch"\ntimes = "0.5"\n'
    )
    terms = directory / "terms.toml"
    terms.write_text(TERMS)
    command = [sys.executable, "-m", "billing", "--set", "listen=127.0.0.1:0"]
    command += ["--set", "security.development=true", "--set", f"price_book={book}"]
    command += ["--set", f"terms={terms}"]
    command += ["--set", f"data_directory={directory}", "--set", "log.level=ERROR"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listen = json.loads(process.stdout.readline())["listen"]
        event = usage_pb2.UsageEvent(
            request_id="a",
            schema_version=1,
            tenant_id="acme",
            model="demo",
            end_reason=usage_pb2.END_REASON_STOP,
            tokens=usage_pb2.TokenUsage(
                prompt_tokens=3_000_000, miss_tokens=3_000_000, completion_tokens=1000
            ),
        )
        event.start_time.FromNanoseconds(END - 10**9)
        event.end_time.FromNanoseconds(END)
        with grpc.insecure_channel(listen) as channel:
            usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(
                usage_pb2.RecordUsageRequest(events=[event]), timeout=30
            )
        yield listen
        process.terminate()


def test_a_good_book_is_shown_with_its_rules() -> None:
    found = run("prices", "--check", str(BOOKS / "gemini.toml"))
    assert found.exit_code == 0
    for words in ("Usable.", "prompt over 200000: hit 0.625", "storage: 4.5 an hour"):
        assert words in found.stdout
    data = json.loads(run("prices", "--check", str(BOOKS / "gemini.toml"), "--json").stdout)
    assert (data["usable"], data["problems"], len(data["versions"])) == (True, [], 2)


def test_a_bad_book_ends_with_every_problem_and_its_line(tmp_path: Path) -> None:
    book = tmp_path / "bad.toml"
    book.write_text(HEAD + PRICE.replace('"1"', "1.5").replace('"2"', '"-2"'))
    found = run("prices", "--check", str(book), columns="40")
    assert found.exit_code == 1
    assert f"{book}:10: versions[1].prices[1].miss: 1.5 is a float" in found.stdout
    assert f'{book}:11: versions[1].prices[1].output: "-2" is not a price' in found.stdout
    data = json.loads(run("prices", "--check", str(book), "--json").stdout)
    assert (data["usable"], data["versions"]) == (False, [])
    assert len(data["problems"]) == 3
    assert run("prices", "--check", str(tmp_path / "none.toml")).exit_code == 1


def test_terms_are_checked_too(tmp_path: Path) -> None:
    terms = tmp_path / "terms.toml"
    text = (
        'format = 1\n[[terms]]\nname = "contract"\ntenant = "acme"\n'
        'from = 2026-11-01T00:00:00Z\ncurrency = "CNY"\n'
    )
    terms.write_text(text)
    book = str(BOOKS / "kimi.toml")
    found = run("prices", "--check", book, "--terms", str(terms))
    assert (found.exit_code, "terms contract: of acme" in found.stdout) == (0, True)
    terms.write_text(text.replace("11-01", "11-02"))
    data = json.loads(run("prices", "--terms", str(terms), "--json").stdout)
    assert f"{terms}:5: " in data["problems"][1]


def test_a_file_rates_tokens_and_says_why() -> None:
    peak = [*PEAK, "--book", str(BOOKS / "deepseek_peak.toml"), "--at"]
    found = run("rate", *peak, "2026-08-24T10:00:00+08:00")
    for words in ("0.0041088", "base: 0.15; window peak: all x 2", "0.0356352"):
        assert words in found.stdout
    data = json.loads(run("rate", *peak, "2026-08-23T10:00:00+08:00", "--json").stdout)
    assert (data["amount"], data["price_book_version"]) == ("0.0020544", "deepseek-2026-08-23")
    assert sum(Decimal(line["amount"]) for line in data["lines"]) == Decimal(data["amount"])
    assert [line["derivation"] for line in data["lines"]] == [
        ["base: 0.15"],
        ["base: 4.5"],
        ["base: 13.5"],
    ]


def test_rating_with_a_file_says_what_is_wrong(tmp_path: Path) -> None:
    book = str(BOOKS / "zhipu.toml")
    found = run("rate", "--book", book, "--model", "glm-4.5", "--hit", "-1")
    assert (found.exit_code, "INVALID_USAGE" in found.stderr) == (1, True)
    found = run("rate", "--book", str(tmp_path), "--model", "x")
    assert (found.exit_code, "PRICE_BOOK_INVALID" in found.stderr) == (1, True)
    found = run("rate", "--book", book, "--model", "other", "--miss", "1")
    assert "No version of the price book covers this model" in found.stdout


def test_the_service_rates_with_its_own_book_and_knows_classes(address: str) -> None:
    common = ["rate", "--model", "demo", "--miss", "1000000", "--json", "--address", address]
    data = json.loads(run(*common).stdout)
    assert (data["amount"], data["currency"], data["notes"]) == ("1", "CNY", [])
    data = json.loads(run(*common, "--class", "batch").stdout)
    assert (data["amount"], data["lines"][0]["rule"]) == ("0.5", "class batch")


def test_a_period_is_rerated_with_a_file(address: str, tmp_path: Path) -> None:
    book = tmp_path / "other.toml"
    book.write_text(HEAD + PRICE.replace('"1"', '"0.5"'))
    common = ["rerate", "--book", str(book), "--address", address]
    data = json.loads(run(*common, "--by", "tenant", "--json").stdout)
    assert data["rows"] == [
        {
            "tenant": "acme",
            "currency": "CNY",
            "charged_requests": 1,
            "charged": "3.002",
            "rerated_requests": 1,
            "rerated": "1.502",
            "difference": "-1.5",
            "saved": "0",
            "rerated_saved": "0",
        }
    ]
    table = run(*common).stdout
    for words in ("acme", "demo", "3.002", "1.502", "-1.5", "CNY"):
        assert words in table
    assert "No usage" in run(*common, "--from", "2026-01-01").stdout
    book.write_text(HEAD)
    found = run(*common)
    assert (found.exit_code, "BOOK_REFUSED" in found.stderr) == (1, True)
    assert f"{book}:2: " in found.stderr
    assert run("rerate", "--book", str(tmp_path / "none")).exit_code == 1


def test_a_book_that_covers_nothing_has_no_amount(address: str, tmp_path: Path) -> None:
    book = tmp_path / "other.toml"
    book.write_text(HEAD + PRICE.replace('"*"', '"x"'))
    common = ["rerate", "--book", str(book), "--address", address, "--by", ""]
    unrated, rated = json.loads(run(*common, "--json").stdout)["rows"]
    assert (unrated["currency"], unrated["rerated_requests"], unrated["rerated"]) == ("", 1, None)
    assert (rated["charged"], rated["rerated"], rated["difference"]) == ("3.002", None, None)
    assert "does not cover these requests" in run(*common).stdout


def test_a_months_invoice_has_the_terms_and_adds_up_in_every_format(address: str) -> None:
    common = ["invoice", "--tenant", "acme", "--address", address]
    month = [*common, "--from", "2025-08-01", "--to", "2025-09-01"]
    data = json.loads(run(*month, "--json").stdout)
    assert [(each["kind"], each["amount"]) for each in data["adjustments"]] == [
        ("discount", "-1.50"),
        ("credit", "-1"),
    ]
    assert (data["total"], data["terms"], data["credits"][0]["left"]) == (
        "0.502000",
        "contract",
        "0",
    )
    rows = list(csv.DictReader(io.StringIO(run(*month, "--format", "csv").stdout)))
    assert sum(Decimal(row["amount"]) for row in rows) == Decimal(data["total"])
    assert [row["rule"] for row in rows] == ["", "", "volume", "welcome"]
    table = run(*month).stdout
    for words in ("-1.50", "volume", "credit welcome: CNY 0 left", "0.502000"):
        assert words in table
    assert json.loads(run(*common, "--json").stdout)["total"] == "3.002000"


def test_an_entry_says_what_its_amount_is_made_of_and_why(address: str) -> None:
    (entry,) = json.loads(run("show", "a", "--json", "--address", address).stdout)["entries"]
    assert [(x["token_class"], x["quantity"], x["derivation"]) for x in entry["lines"]] == [
        ("miss", 3_000_000, ["base: 1"]),
        ("output", 1000, ["base: 2"]),
    ]
    assert sum(Decimal(x["amount"]) for x in entry["lines"]) == Decimal(entry["amount"])
    assert entry["notes"] == []
    table = run("show", "a", "--address", address).stdout
    assert "miss: 3,000,000 x 1 per 1,000,000 = 3 (base: 1)" in table
