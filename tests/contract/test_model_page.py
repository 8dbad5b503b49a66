"""`docs/models.md` names the families and versions that are tried, and no others."""

import re
from pathlib import Path

from tests.contract import test_architectures as matrix
from tests.contract import test_more_architectures as more
from worker.transformers_version import OLDEST

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()


def named(title: str) -> set[str]:
    """First column of the tables under `title`."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([a-z0-9_-]+)`", row)} - {"model_type"}


def test_families_are_those_of_the_tests() -> None:
    assert named("Served") == {*matrix.SUPPORTED, *more.COMPUTED}
    assert named("Refused") == {*matrix.REFUSED, *more.REFUSED}


def test_versions_are_those_of_the_tests() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tried = re.findall(r"^(?:OLDEST|NEWER)_TRANSFORMERS := ([0-9.]+)$", makefile, re.MULTILINE)
    pins = (ROOT / "constraints.txt").read_text()
    tried += re.findall(r"^transformers==([0-9.]+)$", pins, re.MULTILINE)
    assert set(re.findall(r"\b5\.\d+\.\d+\b", PAGE)) == set(tried)
    assert tuple(int(number) for number in tried[0].split(".")[:2]) == OLDEST
