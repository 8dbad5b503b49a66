"""What dashboards and alert rules ask Prometheus for is what the services have."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from billing.metrics import BillingMetrics
from gateway.metrics import GatewayMetrics
from tests.cache_cluster import cache_cluster
from tests.contract.test_docs_are_true import worker_registry
from tests.promtool import needed_promtool

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROVISIONING = DEPLOY / "grafana" / "provisioning"

# What Prometheus itself has of each scrape.
SCRAPES = {"up": {"job", "instance"}}
TARGET_LABELS = {"job", "instance"}
GRID_COLUMNS = 24


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(board: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    """By where they stand."""
    found = {f"alert {rule['alert']}": str(rule["expr"]) for rule in rules()}
    for board in BOARDS:
        for panel in panels(board):
            for target in panel.get("targets", ()):
                where = f"{board.stem}: {panel['title']} {target['refId']}"
                found[where] = target["expr"].replace("$__rate_interval", "1m")
    return found


def sample_names(registry: CollectorRegistry) -> set[str]:
    found = set()
    for metric in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        found |= {metric.name + suffix for suffix in suffixes.get(metric.type, ("",))}
    return found


@pytest.fixture(scope="module")
def served() -> set[str]:
    """Every name: the cache service's from the page of a process, whose stats are behind them."""
    registries = (worker_registry(), BillingMetrics().registry, GatewayMetrics().registry)
    names = set().union(*map(sample_names, registries))
    with cache_cluster() as cluster:
        cluster.cache_settings["metrics_listen"] = "127.0.0.1:0"
        address = cluster.start_cache().ready["metrics_listen"]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", page, re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def documented() -> dict[str, str]:
    """The column of labels of each metric of docs/metrics.md."""
    found = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        names, _, labels = line.partition("|")[2].partition("|")
        if line.startswith("| `kvtier_"):
            for name in re.findall(r"`(\w+)`", names):
                found[name] = labels.split("|")[0]
    return found


def test_every_metric_that_is_asked_for_is_served(served: set[str]) -> None:
    for where, expression in expressions().items():
        asked = set(re.findall(r"\bkvtier_\w+", re.sub(r'"[^"]*"', "", expression)))
        assert asked or "up{" in expression, where
        assert asked <= served, where


def test_every_label_that_is_asked_for_is_one_of_a_metric_of_the_expression() -> None:
    labels = documented()
    for where, expression in expressions().items():
        bare = re.sub(r'"[^"]*"', "", expression)
        metrics = set(re.findall(r"\bkvtier_\w+|\bup\b", bare))
        rows = {labels.get(re.sub("_(bucket|sum|count)$", "", name), "") for name in metrics}
        known = {"le"} | TARGET_LABELS | set(re.findall(r"`(\w+)`", " ".join(rows)))
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", bare)
        asked = {word.strip() for group in grouped for word in group.split(",")}
        for selector in re.findall(r"\{([^}]*)\}", bare):
            asked |= set(re.findall(r"(\w+)=", selector))
        assert asked <= known, where
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            if label not in TARGET_LABELS:
                for value in values.split("|"):
                    assert re.search(rf"\b{value}\b", " ".join(rows)), f"{where}: {label}={value}"


def test_what_dashboards_must_show_is_shown() -> None:
    shown = " ".join(text for where, text in expressions().items() if not where.startswith("alert"))
    for name in (
        "kvtier_gateway_requests_total",
        "kvtier_worker_ttft_seconds_bucket",
        "sum by (tier) (rate(kvtier_worker_hit_tokens_total",
        "kvtier_cache_evicted_blocks_total",
        "kvtier_cache_ssd_payload_bytes_total",
        "kvtier_cache_shared_bytes_total",
        "kvtier_worker_engine_waiting_requests",
        "kvtier_worker_usage_journal_lag_events",
        "kvtier_billing_reservations_total",
    ):
        assert name in shown


def test_every_alert_says_what_to_do_and_has_its_section() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    sections = re.findall(r"^### (Kvtier\w+)$", operations, re.MULTILINE)
    assert sections == [rule["alert"] for rule in rules()]
    for rule in rules():
        said = rule["annotations"]
        assert said["summary"]
        assert said["action"]
        assert said["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket", "note")


def test_jobs_of_rules_and_dashboards_are_scraped() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    for where, expression in expressions().items():
        for pattern in re.findall(r'job=~?"([^"]*)"', expression):
            assert any(re.fullmatch(pattern, job) for job in jobs), where


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_a_dashboard_is_one_that_grafana_can_provision(board: Path) -> None:
    data = json.loads(board.read_text())
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    assert data["uid"] == board.stem
    assert data["title"]
    assert data["schemaVersion"] >= 36
    assert "id" not in data, "an id is one Grafana's own, and keeps others from loading it"
    numbers = [panel["id"] for panel in data["panels"]]
    assert sorted(numbers) == sorted(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in data["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"] == {"type": "prometheus", "uid": uid}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        assert all(t["datasource"] == panel["datasource"] for t in panel["targets"])


def test_dashboards_lie_where_they_are_looked_for() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "kvtier.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == "/etc/grafana/dashboards"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = services["grafana"]["volumes"] if "grafana" in services else []
    assert not mounts or "./deploy/grafana/dashboards:/etc/grafana/dashboards:ro" in mounts


def test_prometheus_takes_configuration_and_rules() -> None:
    promtool = needed_promtool()
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_prometheus_can_read_what_dashboards_ask(tmp_path: Path) -> None:
    promtool = needed_promtool()
    recorded = [
        {"record": f"asked:{number}", "expr": text}
        for number, text in enumerate(expressions().values())
    ]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": recorded}]}))
    promtool("check", "rules", str(file))


def test_promtool_finds_what_is_wrong(tmp_path: Path) -> None:
    promtool = needed_promtool()
    file = tmp_path / "wrong.yml"
    wrong = [{"record": "asked", "expr": "sum by (tier"}]
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": wrong}]}))
    with pytest.raises(subprocess.CalledProcessError):
        promtool("check", "rules", str(file))
