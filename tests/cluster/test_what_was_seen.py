"""After all that: the bill against what caches attest, and what Prometheus has seen."""

import re

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.load import Caller, ask
from tests.cluster.told import Told
from tests.contract.test_dashboards import expressions, rules

pytestmark = [pytest.mark.cluster, pytest.mark.thorough, pytest.mark.timeout(3600)]

TARGETS = 8
PROMPTS_AGAIN = 12
NO_BUDGETS = "budget.enforce is off: nobody is asked"
NO_DAMAGE = "no block is damaged, and no drive fails"
WITHOUT_DATA = {
    "kvtier-cache: Blocks refused a place A": "the arenas are far from full",
    "kvtier-cache: Blocks that left C": "nobody purges",
    "kvtier-cache: Damage and errors A": NO_DAMAGE,
    "kvtier-cache: Damage and errors B": NO_DAMAGE,
    "kvtier-cache: Damage and errors C": NO_DAMAGE,
    "kvtier-cache: Bulk lane A": "a worker and its cache share memory",
    "kvtier-money: Asked for, by what became of it A": NO_BUDGETS,
    "kvtier-money: Workers that ask A": NO_BUDGETS,
    "kvtier-money: Until answered, p95 A": NO_BUDGETS,
    "kvtier-money: Until answered, p95 B": NO_BUDGETS,
    "kvtier-serving: What it is made of, p95 C": NO_BUDGETS,
    "kvtier_cache_corrupt_blocks_total": NO_DAMAGE,
    "kvtier_cache_scrub_findings_total": NO_DAMAGE,
    "kvtier_cache_ssd_failures_total": NO_DAMAGE,
    'kvtier_worker_budget_asks_total{outcome=~"unavailable|allowance"}': NO_BUDGETS,
}
"""What panels and alerts ask that nothing here can feed, and why. What has data is not listed."""

BY_CHANCE = {
    "kvtier-cache: Ended by their deadline A": "a worker may die in the middle of a load",
    "kvtier-serving: Refused and failed, by reason B": "a request may come while a worker stops",
    "kvtier_cache_expired_total": "as the panel",
    'kvtier_cache_shared_dropped_blocks_total{reason=~"queue_full|left"}': "a link may be gone",
}
"""What a part that dies at the right moment feeds, and why."""

HIT_RATE = (
    "sum by (tier) (kvtier_worker_hit_tokens_total) /"
    " scalar(sum(kvtier_worker_hit_tokens_total) + sum(kvtier_worker_miss_tokens_total))"
)


def test_what_was_answered_is_answered_so_again(
    cluster: Cluster, told: Told, caller: Caller
) -> None:
    with caller.client() as client:
        for text in told.prompts()[:: max(1, len(told.prompts()) // PROMPTS_AGAIN)]:
            ask(client, told, text)
    told.check(cluster)


def test_what_was_billed_is_what_the_caches_attest(cluster: Cluster, told: Told) -> None:
    found = cluster.ask("billing", "kvtier", "usage", "reconcile")
    least, most = told.request_count()
    assert least <= found["requests"] <= most
    assert not [each for each in found["differences"] if not each["explained"]]


def test_prometheus_has_every_target(cluster: Cluster) -> None:
    cluster.until("every target to be up", lambda: cluster.series("count(up == 1)") == TARGETS)
    assert cluster.series("count(up)") == TARGETS


def test_prometheus_has_hit_rates_by_tier(cluster: Cluster) -> None:
    shares = {each["metric"]["tier"]: float(each["value"][1]) for each in cluster.query(HIT_RATE)}
    assert shares["gpu"] > 0
    assert sum(shares.values()) < 1


def test_every_panel_shows_something(cluster: Cluster) -> None:
    asked = panels_ask()
    empty = {where for where, text in asked.items() if not had_data(cluster, text)}
    assert empty - BY_CHANCE.keys() == WITHOUT_DATA.keys() & asked.keys()


def test_every_alert_has_something_to_go_by(cluster: Cluster) -> None:
    asked = alerts_ask()
    empty = {each for each in asked if not had_data(cluster, each)}
    assert empty - BY_CHANCE.keys() == WITHOUT_DATA.keys() & asked
    assert WITHOUT_DATA.keys() | BY_CHANCE.keys() <= asked | panels_ask().keys()


def test_only_billing_has_something_to_look_into(cluster: Cluster) -> None:
    for service in set(cluster.services()) - {"billing"}:  # its database was killed and cut off
        assert "Traceback" not in cluster.logs(service)


def test_grafana_has_the_dashboards(cluster: Cluster) -> None:
    if "grafana" in cluster.left_out:
        pytest.skip("GRAFANA IS NOT TESTED: its image cannot be pulled, and Debian has none")
    cluster.wait_healthy("grafana")
    assert "error" not in cluster.logs("grafana").lower()


def panels_ask() -> dict[str, str]:
    """By where they stand."""
    return {where: text for where, text in expressions().items() if not where.startswith("alert ")}


def alerts_ask() -> set[str]:
    """Names with what their labels must be, each by itself: whether an alert is on is not asked."""
    selector = r"\b(?:kvtier_\w+|up)\b(?:\{[^}]*\})?"
    return {found for rule in rules() for found in re.findall(selector, str(rule["expr"]))}


def had_data(cluster: Cluster, expression: str) -> bool:
    """Whether it ever was a number since the cluster's start."""
    return bool(cluster.query(f"count_over_time((({expression}) >= 0)[2h:10s])"))
