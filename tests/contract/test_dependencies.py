"""Every package is pinned, and every one that kvtier asks for has a reason."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKER = PROJECT["optional-dependencies"]["worker"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in pinned
        if each.marker is None or each.marker.evaluate()
    }


def installed() -> dict[str, str]:
    """What kvtier, its worker and its tests need, all the way down, as it is here."""
    development = (ROOT / "requirements-dev.txt").read_text().splitlines()
    waiting = [*PROJECT["dependencies"], *WORKER]
    waiting += [line for line in development if line and not line.startswith("#")]
    found: dict[str, str] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in found or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version.partition("+")[0]
        waiting += package.requires or []
    return found


def test_constraints_pin_everything_that_is_installed() -> None:
    pinned = pins()
    wrong = {name: v for name, v in installed().items() if pinned.get(name) != v}
    assert wrong == {}


def test_every_dependency_has_a_sentence_why() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("|")]
    reasons = {
        word: reason.strip()
        for names, reason in rows
        for word in re.findall(r"[a-z0-9-]+", names.lower())
    }
    for text in (*PROJECT["dependencies"], *WORKER):
        assert len(reasons.get(canonicalize_name(Requirement(text).name), "")) > 8, text
