"""`docker compose up` on one machine: it serves, hits, bills, and goes on after a part dies.

The tests of the folder follow each other on one cluster; each leaves it healthy. What every reply
said it used is noted, and the ledger has to say the same, to the token, at the end of each.
"""

from typing import Any

import openai
import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.load import Caller
from tests.cluster.told import Told, prompt

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

PUBLISHED = {
    "gateway": {("", "7441"), ("", "7442")},
    "prometheus": {("127.0.0.1", "9090")},
    "grafana": {("127.0.0.1", "3000")},
}

BLOCK_TOKENS_MAX = 64
"""The last block of a prompt is computed, always."""


def test_everything_runs_as_nobody_and_listens_where_it_should(cluster: Cluster) -> None:
    expected = set(PUBLISHED) | {"billing", "cache-1", "cache-2", "mooncake", "postgres"}
    expected |= {"worker-1", "worker-2"}
    assert set(cluster.services()) == expected - cluster.left_out
    for service in cluster.services():
        found = cluster.inspect(service)
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert found["HostConfig"]["Memory"] > 0
        status = cluster.execute(service, "cat", "/proc/1/status")
        users = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
        assert "0" not in users
        published = {
            (each["HostIp"], port.partition("/")[0])
            for port, all_of_it in (found["HostConfig"]["PortBindings"] or {}).items()
            for each in all_of_it
        }
        assert published == PUBLISHED.get(service, set())


def test_networks_are_for_those_who_need_them(cluster: Cluster) -> None:
    reached: dict[str, set[str]] = {}
    for service in cluster.services():
        for network in cluster.inspect(service)["NetworkSettings"]["Networks"]:
            reached.setdefault(network.rpartition("_")[2], set()).add(service)
    assert reached["ledger"] == {"billing", "postgres"}
    assert reached["shared"] == {"cache-1", "cache-2", "mooncake", "prometheus"}
    assert reached["edge"] == {"gateway"}


def test_a_secret_is_where_it_is_used(cluster: Cluster) -> None:
    kept = {
        "gateway": {"ca.pem", "client.key", "client.pem", "server.key", "server.pem"},
        "billing": {"ca.pem", "pgpass", "server.key", "server.pem"},
        "postgres": {"password"},
    }
    kept["cache-1"] = kept["cache-2"] = kept["gateway"] | {"pool_key"}
    kept["worker-1"] = kept["worker-2"] = kept["gateway"] | {"scope_secret"}
    for service, names in kept.items():
        assert set(cluster.execute(service, "ls", "/secrets").split()) == names
    password = cluster.execute("postgres", "cat", "/secrets/password")
    for service in cluster.services():
        assert password not in str(cluster.inspect(service))


def test_the_services_image_has_no_torch(cluster: Cluster) -> None:
    find = "import importlib.util as u; print(u.find_spec('torch'))"
    assert cluster.execute("cache-1", "python", "-c", find) == "None"
    assert cluster.execute("worker-1", "python", "-c", find) != "None"


def test_a_prompt_that_comes_again_hits_and_is_billed_so(cluster: Cluster, told: Told) -> None:
    cold = told.generate(cluster, prompt("first"))
    warm = told.generate(cluster, prompt("first"))
    assert cold["hit_tokens"] == 0
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    told.check(cluster)


def test_an_openai_client_comes_in_by_key_and_tls(
    cluster: Cluster, caller: Caller, told: Told
) -> None:
    with caller.client() as client:
        model = client.models.list().data[0].id
        messages: Any = [{"role": "user", "content": prompt("by key")}]
        for expect_hit in (False, True):
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
            assert reply.usage is not None
            hit = told.note(reply.id, reply.usage.model_dump())
            assert (hit > 0) is expect_hit
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-kvtier-guessed").models.list()
    told.check(cluster)


def test_a_worker_that_crashed_finds_its_blocks_in_the_cache(cluster: Cluster, told: Told) -> None:
    told.generate(cluster, prompt("second"))
    cluster.kill("worker-1")
    cluster.wait_healthy("worker-1")
    warm = told.generate(cluster, prompt("second"))
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    assert warm["hit_tokens_by_tier"]["gpu"] == 0
    told.check(cluster)


def test_a_cache_that_crashed_has_its_blocks_on_the_disk(cluster: Cluster, told: Told) -> None:
    told.generate(cluster, prompt("third"))
    cluster.kill("cache-1")
    cluster.wait_healthy("cache-1")
    cluster.kill("worker-1")
    cluster.wait_healthy("worker-1")
    warm = told.generate(cluster, prompt("third"))
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    assert warm["hit_tokens_by_tier"]["ssd"] == warm["hit_tokens"]
    told.check(cluster)


def test_a_billing_that_hangs_or_crashes_delays_the_bill_alone(
    cluster: Cluster, told: Told
) -> None:
    cluster.pause("billing")
    try:
        for number in range(5):
            told.generate(cluster, prompt(f"meanwhile {number}"))
    finally:
        cluster.resume("billing")
    told.check(cluster)
    cluster.kill("billing")
    told.generate(cluster, prompt("while it starts"))
    cluster.wait_healthy("billing")
    told.check(cluster)


def test_a_cache_that_hangs_costs_hits_alone(cluster: Cluster, told: Told) -> None:
    cluster.pause("cache-1")
    try:
        used = told.generate(cluster, prompt("without a cache"))
    finally:
        cluster.resume("cache-1")
    assert used["hit_tokens"] == 0
    cluster.wait_healthy("cache-1")
    told.check(cluster)


def test_nothing_was_said_that_an_operator_has_to_look_into(cluster: Cluster) -> None:
    for service in cluster.services():
        assert "Traceback" not in cluster.logs(service)
