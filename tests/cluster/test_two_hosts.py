"""A conversation that moves from one worker to the other finds its blocks in the shared tier."""

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.load import Caller, Load
from tests.cluster.told import Told, prompt

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

BLOCK_TOKENS_MAX = 64


def written(cluster: Cluster, cache: str) -> int:
    """Blocks that it gave to the shared tier since its start."""
    words = ("kvtier", "cache", "stats", "--address", "unix:/run/kvtier/cache.sock")
    return int(cluster.ask(cache, *words)["counters"].get("shared_blocks_written", 0))


def move(cluster: Cluster, told: Told, name: str) -> None:
    """A prompt is computed at worker 1 and asked again at worker 2."""
    before = written(cluster, "cache-1")
    cold = told.generate(cluster, prompt(name), "worker-1")
    assert cold["hit_tokens"] == 0
    blocks = cold["miss_tokens"] // BLOCK_TOKENS_MAX
    cluster.until(
        "the shared tier to have it", lambda: written(cluster, "cache-1") >= before + blocks
    )
    warm = told.generate(cluster, prompt(name), "worker-2")
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    assert warm["hit_tokens_by_tier"]["shared"] == warm["hit_tokens"]


def test_a_conversation_moves(cluster: Cluster, told: Told) -> None:
    move(cluster, told, "moved")
    told.check(cluster)


def test_blocks_go_over_the_network_that_is_for_them(cluster: Cluster) -> None:
    """Moved before; its connections are kept."""
    other = cluster.networks("cache-2")
    peers = {there for _, there in cluster.connections("cache-1")}
    assert other["shared"] in peers
    assert other["inside"] not in peers


def test_requests_spread_over_both_workers(cluster: Cluster, told: Told, caller: Caller) -> None:
    with Load(caller, told, "spread") as load:
        load.progress(12)
    assert not load.errors
    served = [
        cluster.series(f'sum(kvtier_worker_requests_total{{instance="worker-{n}:9421"}})')
        for n in (1, 2)
    ]
    assert all(served)
    told.check(cluster)
