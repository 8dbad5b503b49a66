"""The wheel ships exactly seven top-level packages and what they need at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_top_level_is_the_seven_rooms(names: list[str]) -> None:
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n}
    assert tops == {"billing", "cache_service", "gateway", "journal", "kvtier", "storage", "worker"}


@pytest.mark.parametrize(
    "needed",
    [
        "kvtier/v1/cache_pb2.py",
        "kvtier/v1/cache.proto",
        "kvtier/cli/main.py",
        "billing/default_prices.toml",
        "billing/books/anthropic.toml",
        "billing/templates/invoice.html",
        "worker/requests.py",
        "gateway/http_app.py",
    ],
)
def test_what_runs_is_in_the_wheel(names: list[str], needed: str) -> None:
    assert needed in names


def test_tests_stay_out_of_the_wheel(names: list[str]) -> None:
    assert not [n for n in names if n.startswith(("tests/", "docs/", "proto/"))]
