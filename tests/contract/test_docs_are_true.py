"""What the documentation names is there, and what is there is documented."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry

from billing.metrics import BillingMetrics
from billing.settings import BillingSettings
from cache_service.settings import CacheSettings
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from kvtier.cli.main import build
from worker.metrics import WorkerMetrics
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ANNOUNCED: set[str] = set()
"""Commands that pages name and that are still to come; empty is right."""

FOLDERS = (
    "",
    "tests",
    "cache_service",
    "storage",
    "storage/ssd",
    "worker",
    "billing",
    "gateway",
    "proto/kvtier",
)


def section(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def keys(settings: Any, prefix: str = "") -> set[str]:
    found = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        nested = hasattr(type(value), "model_fields")
        found |= keys(value, f"{prefix}{name}.") if nested else {prefix + name}
    return found


@pytest.mark.parametrize(
    ("title", "settings"),
    [
        ("Cache service", CacheSettings()),
        ("Worker", WorkerSettings(model=Path("checkpoint"))),
        ("Billing", BillingSettings()),
        ("Gateway", GatewaySettings()),
    ],
)
def test_every_setting_is_documented_and_no_other(title: str, settings: Any) -> None:
    rows = [line for line in section("settings.md", title).splitlines() if line.startswith("|")]
    documented = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row.split("|")[1])}
    assert documented == keys(settings)


def metric_names(registry: CollectorRegistry) -> set[str]:
    return {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in registry.collect()
    }


def worker_registry() -> CollectorRegistry:
    metrics = WorkerMetrics()
    metrics.watch_engine(lambda: _Anything())  # type: ignore[arg-type, return-value]
    return metrics.registry


class _Anything:
    def __getattr__(self, _name: str) -> int:
        return 0


@pytest.mark.parametrize(
    ("title", "registry"),
    [
        ("Worker", worker_registry()),
        ("Billing", BillingMetrics().registry),
        ("Gateway", GatewayMetrics().registry),
    ],
)
def test_every_metric_is_documented_and_no_other(title: str, registry: CollectorRegistry) -> None:
    documented = re.findall(r"^\| `(kvtier_[a-z_]+)`", section("metrics.md", title), re.MULTILINE)
    assert set(documented) == metric_names(registry)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    names = re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|proto|toml))`", text)
    missing = [
        name
        for name in names
        if not any((ROOT / folder / name).exists() for folder in FOLDERS) and name != "prices.toml"
    ]
    assert missing == []
    links = re.findall(r"\]\(([a-zA-Z0-9_/.-]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def commands(app: typer.Typer) -> set[str]:
    groups = {each.name for each in app.registered_groups if each.name}
    return groups | {
        (each.name or getattr(each.callback, "__name__", "")) for each in app.registered_commands
    }


def room_commands() -> dict[str, set[str]]:
    """What `pyproject.toml` says that rooms bring; the installed metadata may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for name, target in project["entry-points"]["kvtier.commands"].items():
        found[name] = commands(loaded(target))
    for name, target in project["entry-points"]["kvtier.benchmarks"].items():
        assert callable(loaded(target))
        found["bench"].add(name)
    return found


def loaded(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_names_is_there(page: Path) -> None:
    rooms = room_commands()
    own = commands(build()) | ANNOUNCED
    for line in re.findall(
        r"(?:`|bin/|^)kvtier ((?:[a-z]+(?:-[a-z]+)* ?){1,2})", page.read_text(), re.MULTILINE
    ):
        first, _, second = line.strip().partition(" ")
        assert first in own | set(rooms), line
        if second and first in rooms:
            assert second in rooms[first], line
