"""Every part is killed under load, and links between parts are gone for a while.

No caller gets a wrong answer, none is told anything that the ledger does not have, and none is
charged twice. What fails is what the part does: requests only where the gateway or a worker is
hit, hits where a cache is. All comes back by itself.
"""

from contextlib import AbstractContextManager

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.compose_file import LONG_RUNNING, RUN_ONCE
from tests.cluster.load import Caller, Load
from tests.cluster.test_two_hosts import move
from tests.cluster.told import Told

pytestmark = [pytest.mark.cluster, pytest.mark.thorough, pytest.mark.timeout(3600)]

CUT_SECONDS = 30.0
"""A silent link; what hangs."""

GONE_SECONDS = 6.0
"""A network that is taken away: each side is told at once, so there is less to wait for."""

EVENTS_UNDER_WAY = 4
"""More than two callers have at a time: billing does not have what ended before."""

INTERRUPTING = {"gateway", "worker-1", "worker-2"}
"""Requests under way may fail with one of them; with no other."""

RUNS_MAX = 40
RUN_STEP_SECONDS = {"setup": 0.4, "model": 3.0}

WAYS = pytest.mark.parametrize("silent", [True, False], ids=["silent", "gone"])


def no_way(
    cluster: Cluster, service: str, other: str, silent: bool
) -> AbstractContextManager[None]:
    return cluster.silence(service, other) if silent else cluster.cut(service, other)


def seconds(silent: bool) -> float:
    return CUT_SECONDS if silent else GONE_SECONDS


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_part_is_killed_under_load(
    cluster: Cluster, told: Told, caller: Caller, service: str
) -> None:
    if service in cluster.left_out:
        pytest.skip(f"{service.upper()} IS NOT TESTED: its image cannot be pulled")
    with Load(caller, told, f"kill {service}") as load:
        load.progress()
        cluster.kill(service)
        load.progress()
        cluster.wait_healthy(service)
        load.progress()
    assert not load.errors or service in INTERRUPTING
    told.check(cluster)


@pytest.mark.parametrize("service", RUN_ONCE)
def test_what_prepares_is_run_again_and_killed_under_load(
    cluster: Cluster, told: Told, caller: Caller, service: str
) -> None:
    """At every stage: what the others have from it stays as it is."""
    kept = {name: cluster.digests(name, "/secrets", "/models") for name in ("gateway", "worker-1")}
    assert all(kept.values())
    with Load(caller, told, f"again {service}") as load:
        load.progress()
        killed = cluster.run_to_its_end(service, RUN_STEP_SECONDS[service], RUNS_MAX)
        assert killed
        load.progress()
    assert not load.errors
    assert kept == {name: cluster.digests(name, "/secrets", "/models") for name in kept}
    told.check(cluster)


@WAYS
def test_the_way_between_gateway_and_a_worker_is_gone(
    cluster: Cluster, told: Told, caller: Caller, silent: bool
) -> None:
    up = 'min(kvtier_gateway_worker_up{worker="worker-1:7421"})'
    with Load(caller, told, f"cut worker {silent}") as load:
        load.progress()
        with no_way(cluster, "worker-1", "gateway", silent):
            cluster.until("the gateway to do without it", lambda: cluster.series(up) == 0)
            load.progress()
            load.last(seconds(silent))
        cluster.until("the gateway to have it back", lambda: cluster.series(up) == 1)
        load.progress()
    told.check(cluster)


def test_a_cache_does_not_answer_its_worker(cluster: Cluster, told: Told, caller: Caller) -> None:
    with Load(caller, told, "cut cache") as load:
        load.progress()
        cluster.pause("cache-1")  # they have no network between them, but a socket
        try:
            load.progress()
            load.last(CUT_SECONDS)
        finally:
            cluster.resume("cache-1")
        cluster.wait_healthy("cache-1")
        load.progress()
    assert not load.errors
    told.check(cluster)


@WAYS
def test_the_way_between_caches_and_mooncake_is_gone(
    cluster: Cluster, told: Told, caller: Caller, silent: bool
) -> None:
    failures = "sum(kvtier_cache_shared_failures_total)"
    with Load(caller, told, f"cut mooncake {silent}") as load:
        load.progress()
        before = cluster.series(failures) or 0
        with no_way(cluster, "mooncake", "cache-1", silent):
            load.progress()
            cluster.until("caches to feel it", lambda: (cluster.series(failures) or 0) > before)
            load.last(seconds(silent))
        load.progress()
    assert not load.errors
    told.check(cluster)


@WAYS
def test_the_way_between_billing_and_postgresql_is_gone(
    cluster: Cluster, told: Told, caller: Caller, silent: bool
) -> None:
    lag = "sum(kvtier_worker_usage_journal_lag_events)"
    with Load(caller, told, f"cut ledger {silent}") as load:
        load.progress()
        with no_way(cluster, "postgres", "billing", silent):
            load.progress()
            cluster.until("usage to wait", lambda: (cluster.series(lag) or 0) > EVENTS_UNDER_WAY)
            load.last(seconds(silent))
        load.progress()
    assert not load.errors
    told.check(cluster)


def test_a_billing_that_is_gone_without_a_word_leaves_the_ledger_to_the_next(
    cluster: Cluster, told: Told, caller: Caller
) -> None:
    """As when its host dies: the database hears nothing, and has a session that holds the lock."""
    with Load(caller, told, "billing gone") as load:
        load.progress()
        with cluster.silence("billing", "postgres"):
            cluster.kill("billing")
        load.progress()
        cluster.wait_healthy("billing")
        load.progress()
    assert not load.errors
    told.check(cluster)


def test_blocks_move_between_hosts_again(cluster: Cluster, told: Told) -> None:
    tries = iter(range(100))
    cluster.until("a block to move", lambda: moved(cluster, told, f"again {next(tries)}"))
    told.check(cluster)


def moved(cluster: Cluster, told: Told, name: str) -> bool:
    try:
        move(cluster, told, name)
    except AssertionError:
        return False
    return True
