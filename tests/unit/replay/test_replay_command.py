"""`kvtier replay`: arguments, the table, the one JSON object, pictures."""

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cache_service.replay.commands import app
from cache_service.replay.curves import OPTIMUM
from cache_service.replay.prices import read_prices

ROOT = Path(__file__).resolve().parents[3]
LINES = [
    {"timestamp": 0, "input_length": 1536, "hash_ids": [1, 2, 3]},
    {"timestamp": 1, "input_length": 1024, "hash_ids": [4, 5]},
    {"timestamp": 2, "input_length": 1600, "hash_ids": [1, 2, 3, 6]},
]
KEYS = {
    "trace",
    "policy",
    "admission",
    "capacity_blocks",
    "unique_blocks",
    "accesses",
    "block_hit_rate",
    "token_hit_rate",
    "opt_block_hit_rate",
    "ssd_block_writes",
    "ssd_bytes_written",
    "evictions",
    "stranded_blocks",
    "seconds",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "small.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_json_is_one_object_with_the_promised_keys(trace: Path) -> None:
    data = answer(trace, "--capacity", "4")
    assert data.keys() >= KEYS
    assert data["trace"] == "small"
    assert data["policy"] == "greedy_dual"
    assert data["admission"] == "all"
    assert data["capacity_blocks"] == {"host": 4}
    assert (data["unique_blocks"], data["accesses"]) == (6, 9)
    assert (data["hit_blocks"], data["block_hit_rate"]) == (2, 0.2222)
    assert data["opt_block_hit_rate"] == 0.3333
    assert data["evictions"] == {"host": 2}
    assert data["savings"] is None


def test_two_tiers_have_two_capacities_and_bytes_written(trace: Path) -> None:
    data = answer(trace, "--host", "50%", "--ssd", "100%", "--block-bytes", "1MiB")
    assert data["capacity_blocks"] == {"host": 3, "ssd": 6}
    assert data["hit_blocks"] == 3
    assert data["ssd_bytes_written"] == data["ssd_block_writes"] << 20
    assert answer(trace, "--host", "3", "--ssd", "6")["block_bytes"] == 512 * 128 * 1024


def test_options_may_stand_before_the_trace(trace: Path) -> None:
    assert answer("--policy", "s3-fifo", "--capacity", "1,000", trace)["policy"] == "s3_fifo"


@pytest.mark.parametrize(
    ("name", "model", "hit", "miss"),
    [
        ("deepseek_launch", "*", "0.1", "1"),
        ("bedrock", "global.anthropic.claude-sonnet-4-*", "0.3", "3"),
        ("qwen", "qwen3-max", "0.5", "2.5"),
        ("baidu", "started-hour", "0.8", "4"),
    ],
)
def test_rates_of_a_book_of_format_2_are_of_a_million_tokens(
    name: str, model: str, hit: str, miss: str
) -> None:
    found = read_prices(ROOT / "billing" / "books" / f"{name}.toml", model)
    assert (found.hit, found.miss) == (Decimal(hit), Decimal(miss))


def test_a_price_book_says_what_was_saved(trace: Path) -> None:
    book = ROOT / "billing" / "default_prices.toml"
    savings = answer(trace, "--capacity", "6", "--price-book", book)["savings"]
    assert savings["currency"] == "CNY"
    assert savings["input_without_cache"] == "0.00416"
    assert savings["saved"] == "0.0013824"  # 1,536 tokens at 1 - 0.1 a million


def test_the_table_says_the_same(trace: Path) -> None:
    result = run(trace, "--host", "3", "--ssd", "6", "--admission", "first_new:1")
    assert result.exit_code == 0
    for words in ("block hit rate", "best possible", "first_new:1, leaving", "stranded blocks"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--policy", "lfu"], "greedy_dual"),
        (["--capacity", "0"], "at least one"),
        (["--capacity", "0%"], "more than 0%"),
        (["--capacity", "ten"], "write 18279 or 10%, not 'ten'"),
        (["--capacity", "x%"], "write 18279 or 10%, not 'x%'"),
        (["--capacity", "200%"], "at most 100%"),
        (["--write-budget", "1TB"], "goes with --ssd"),
        (["--admission", "all"], "goes with --ssd"),
        (["--write-when", "committed", "--host", "5"], "goes with --ssd"),
        (["--segment-blocks", "8", "--capacity", "5"], "goes with --ssd"),
        (["--host", "5", "--ssd", "5", "--admission", "first_new:0"], "at least one"),
        (["--host", "5", "--ssd", "5", "--admission", "first_new:x"], "first_new:N"),
        (["--capacity", "5", "--host", "5"], "two"),
        (["--ssd", "5"], "--host"),
        (["--host", "5", "--ssd", "5", "--admission", "some"], "first_new"),
        (["--host", "5", "--ssd", "5", "--write-budget", "5 parsecs"], "64MiB"),
        (["--block-bytes", "0"], "64MiB"),
    ],
)
def test_a_wrong_command_line_is_explained(trace: Path, arguments: list[str], problem: str) -> None:
    result = run(trace, *arguments)
    assert result.exit_code == 2
    # The box that it is printed in breaks lines.
    assert problem.replace(" ", "") in "".join(result.output.replace("\u2502", "").split())
    assert result.stdout == ""


def test_what_cannot_be_played_ends_with_status_1_and_the_line(trace: Path, tmp_path: Path) -> None:
    trace.write_text(trace.read_text() + "{\n")
    result = run(trace, "--json")
    assert result.exit_code == 1
    assert "line 4: not JSON" in result.stderr
    assert result.stderr.startswith("kvtier replay: TRACE_UNUSABLE: ")
    assert "; " in result.stderr
    assert result.stdout == ""
    book = tmp_path / "book.toml"
    book.write_text("format = 2\nversions = []\n")
    result = run(trace, "--price-book", book)
    assert result.exit_code == 1
    assert "book.toml" in result.stderr
    assert result.stderr.startswith("kvtier replay: PRICE_BOOK_UNUSABLE: ")
    absent = run(tmp_path / "nope.jsonl")
    assert absent.exit_code == 1
    assert absent.stderr == (
        f"kvtier replay: TRACE_UNUSABLE: {tmp_path}/nope.jsonl cannot be read: No such file or"
        " directory; name a file of JSON lines, plain or gzip\n"
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn_and_its_numbers_are_given(
    trace: Path, tmp_path: Path, suffix: str
) -> None:
    picture = tmp_path / f"curves{suffix}"
    data = answer(trace, "--plot", picture)
    assert picture.stat().st_size > 1_000
    assert data["curves"].keys() == {"greedy_dual", "lru", "arc", "s3_fifo", OPTIMUM}
    for name, points in data["curves"].items():
        best = [rate for _, rate in data["curves"][OPTIMUM]]
        assert all(rate <= top for (_, rate), top in zip(points, best, strict=True)), name


def test_a_plot_that_cannot_be_is_refused_before_the_work(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(trace, "--plot", tmp_path / "curves.gif").exit_code == 1
    assert run(trace, "--plot", tmp_path / "absent" / "curves.png").exit_code == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(trace, "--plot", tmp_path / "curves.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("kvtier replay: PLOT_IMPOSSIBLE: ")
    assert "kvtier[plot]" in result.stderr
