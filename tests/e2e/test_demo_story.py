"""The whole way as a user runs it: `kvtier demo`, its exit status, its data."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KVTIER = str(Path(sys.executable).with_name("kvtier"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [
            KVTIER,
            "demo",
            "--json",
            str(home / "demo.json"),
            "--model-cache",
            str(home / "model"),
            "--directory",
            str(home / "data"),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=home,
        check=False,
    )
    logs = "\n".join(p.read_text()[-3000:] for p in (home / "data/logs").glob("*.log"))
    assert (home / "demo.json").exists(), f"{done.stdout}\n{done.stderr}\n{logs}"
    result: dict[str, Any] = json.loads((home / "demo.json").read_text())
    result["exit_status"] = done.returncode
    result["output"] = done.stdout
    result["logs"] = logs
    return result


def test_every_promise_but_speed_holds(data: dict[str, Any]) -> None:
    """How much sooner the first token comes is the demo's own check; a busy machine may miss it."""
    failed = [name for name, held in data["checks"].items() if not held]
    assert not [name for name in failed if "sooner" not in name], f"{failed}\n{data['logs']}"
    assert len(data["checks"]) >= 17


def test_exit_status_says_whether_all_checks_hold(data: dict[str, Any]) -> None:
    assert data["exit_status"] == (0 if all(data["checks"].values()) else 1)


def test_turns_add_up(data: dict[str, Any]) -> None:
    assert len(data["turns"]) >= 8
    for turn in data["turns"]:
        assert turn["hit_tokens"] + turn["miss_tokens"] == turn["prompt_tokens"], turn
        assert sum(turn["hit_tokens_by_tier"].values()) == turn["hit_tokens"], turn
        assert turn["tokens_equal_cold"] is True, turn


def test_tiers_all_served(data: dict[str, Any]) -> None:
    for tier in ("gpu", "host", "ssd"):
        assert any(turn["hit_tokens_by_tier"][tier] > 0 for turn in data["turns"]), tier


def test_crash_lost_no_block_and_the_interrupted_request_charged_nothing(
    data: dict[str, Any],
) -> None:
    restart = data["restart"]
    assert restart["blocks_after"] >= restart["blocks_before"] > 0
    assert data["interrupted_request_id"]
    assert data["interrupted_request_id"] not in {t["request_id"] for t in data["turns"]}


def test_invoices_are_the_sum_of_their_lines_and_of_the_replies(data: dict[str, Any]) -> None:
    assert len(data["invoices"]) == 2
    for invoice in data["invoices"]:
        lines = sum((Decimal(line["amount"]) for line in invoice["lines"]), Decimal(0))
        assert lines == Decimal(invoice["total"])
        turns = [t for t in data["turns"] if t["tenant"] == invoice["tenant"]]
        for kind, field in (
            ("hit", "hit_tokens"),
            ("miss", "miss_tokens"),
            ("output", "completion_tokens"),
        ):
            charged = sum(
                line["quantity_tokens"] for line in invoice["lines"] if line["token_class"] == kind
            )
            assert charged == sum(t[field] for t in turns), (invoice["tenant"], kind)


def test_no_process_is_left_behind(data: dict[str, Any]) -> None:
    assert data["turns"]
    running = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert not [
        line
        for line in running.splitlines()
        if "kvtier-demo" in line
        or (
            "-m worker" in line
            and "demo" in line
            and "data_directory" in line
            and "/demo0/" in line
        )
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"too short", "needs at least"), (b"\xff\xfe broken", "not UTF-8"), (None, "cannot read")],
)
def test_unusable_document_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    document = tmp_path / "document.txt"
    if content is not None:
        document.write_bytes(content)
    done = subprocess.run(
        [KVTIER, "demo", "--document", str(document), "--model-cache", str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stdout + done.stderr
