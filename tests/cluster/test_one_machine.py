"""`docker compose up` on one machine: it serves, hits, bills, and goes on after a part dies.

The tests follow each other on one cluster; each leaves it healthy. What every reply said it used is
noted, and the ledger has to say the same, to the token, at the end of each.
"""

import ssl
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

GATEWAY = "https://localhost:7441/v1"
DELIVERY_SECONDS_MAX = 120.0
GATEWAY_PORTS = {"7441", "7442"}
LISTENING = "0A"
NAME_SERVER = "0B00007F:"
"""127.0.0.11, as the kernel's table has it: in every container of a network with a name."""

BLOCK_TOKENS_MAX = 64
"""The last block of a prompt is computed, always."""


class Told:
    """What clients were told, summed."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()

    def generate(self, cluster: Cluster, prompt: str) -> dict[str, Any]:
        """One request from within the worker's container; its usage."""
        reply = cluster.ask("worker", "kvtier", "generate", "--max-tokens", "8", prompt)
        usage: dict[str, Any] = reply["usage"]
        self._add(usage["hit_tokens"], usage["miss_tokens"], usage["completion_tokens"])
        return usage

    def note(self, usage: dict[str, Any]) -> int:
        """Usage in DeepSeek's shape; the hit tokens."""
        hit = int(usage["prompt_cache_hit_tokens"])
        self._add(hit, usage["prompt_cache_miss_tokens"], usage["completion_tokens"])
        return hit

    def _add(self, hit: int, miss: int, output: int) -> None:
        self.sums["request_count"] += 1
        self.sums["hit_tokens"] += hit
        self.sums["miss_tokens"] += miss
        self.sums["output_tokens"] += output


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


def prompt(name: str) -> str:
    """Of some hundred tokens, which no other name begins with."""
    return f"{name}: " + " ".join(f"{name} says {number};" for number in range(120))


def listeners(cluster: Cluster, service: str) -> set[str]:
    """Ports at which a socket of the container listens, but for the engine's name server."""
    lines = cluster.execute(service, "cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
    fields = [line.split() for line in lines]
    found = [field[1] for field in fields if len(field) > 3 and field[3] == LISTENING]
    others = [address for address in found if not address.startswith(NAME_SERVER)]
    return {str(int(address.rpartition(":")[2], 16)) for address in others}


def check_ledger(cluster: Cluster, told: Told) -> None:
    """The ledger comes to what clients were told, and holds."""
    deadline = time.monotonic() + DELIVERY_SECONDS_MAX
    sums: dict[str, int] = {}
    while time.monotonic() < deadline:
        totals = cluster.ask("billing", "kvtier", "usage", "report")["totals"]
        sums = {name: totals[0][name] for name in told.sums} if totals else {}
        if sums.get("request_count", 0) >= told.sums["request_count"]:
            break
        time.sleep(1.0)
    assert sums == dict(told.sums)
    assert cluster.ask("billing", "kvtier", "usage", "verify")["verified"]


def test_everything_runs_as_nobody_and_only_the_gateway_listens(cluster: Cluster) -> None:
    assert sorted(cluster.services()) == ["billing", "cache", "gateway", "worker"]
    for service in cluster.services():
        found = cluster.inspect(service)
        assert found["Config"]["User"] == "kvtier"
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert cluster.execute(service, "id", "-u") == "10001"
        expected = GATEWAY_PORTS if service == "gateway" else set()
        assert {
            port.partition("/")[0] for port in found["HostConfig"]["PortBindings"] or ()
        } == expected
        assert listeners(cluster, service) == expected


def test_the_services_image_has_no_torch(cluster: Cluster) -> None:
    find = "import importlib.util as u; print(u.find_spec('torch'))"
    assert cluster.execute("cache", "python", "-c", find) == "None"
    assert cluster.execute("worker", "python", "-c", find) != "None"


def test_a_prompt_that_comes_again_hits_and_is_billed_so(cluster: Cluster, told: Told) -> None:
    cold = told.generate(cluster, prompt("first"))
    warm = told.generate(cluster, prompt("first"))
    assert cold["hit_tokens"] == 0
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    check_ledger(cluster, told)


def test_an_openai_client_comes_in_by_key_and_tls(
    cluster: Cluster, told: Told, tmp_path: Path
) -> None:
    words = ("keys", "create", "--organisation", "default")
    key = cluster.ask("gateway", "kvtier", *words)["api_key"]
    assert cluster.execute("gateway", "ls", "/tls").split() == [
        "ca.pem",
        "gateway.key",
        "gateway.pem",
    ]
    cluster.copy("gateway", "/tls/ca.pem", tmp_path / "ca.pem")
    tls = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with (
        openai.DefaultHttpx2Client(verify=tls) as http,
        openai.OpenAI(base_url=GATEWAY, api_key=key, http_client=http, max_retries=0) as client,
    ):
        model = client.models.list().data[0].id
        messages: Any = [{"role": "user", "content": prompt("by key")}]
        for expect_hit in (False, True):
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
            assert reply.usage is not None
            hit = told.note(reply.usage.model_dump())
            assert (hit > 0) is expect_hit
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-kvtier-guessed").models.list()
    check_ledger(cluster, told)


def test_a_worker_that_crashed_finds_its_blocks_in_the_cache(cluster: Cluster, told: Told) -> None:
    told.generate(cluster, prompt("second"))
    cluster.kill("worker")
    cluster.wait_healthy("worker")
    warm = told.generate(cluster, prompt("second"))
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    assert warm["hit_tokens_by_tier"]["gpu"] == 0
    check_ledger(cluster, told)


def test_a_cache_that_crashed_has_its_blocks_on_the_disk(cluster: Cluster, told: Told) -> None:
    told.generate(cluster, prompt("third"))
    cluster.kill("cache")
    cluster.wait_healthy("cache")
    cluster.kill("worker")
    cluster.wait_healthy("worker")
    warm = told.generate(cluster, prompt("third"))
    assert warm["miss_tokens"] <= BLOCK_TOKENS_MAX < warm["hit_tokens"]
    assert warm["hit_tokens_by_tier"]["ssd"] == warm["hit_tokens"]
    check_ledger(cluster, told)


def test_a_billing_that_hangs_or_crashes_delays_the_bill_alone(
    cluster: Cluster, told: Told
) -> None:
    cluster.pause("billing")
    try:
        for number in range(5):
            told.generate(cluster, prompt(f"meanwhile {number}"))
    finally:
        cluster.resume("billing")
    check_ledger(cluster, told)
    cluster.kill("billing")
    told.generate(cluster, prompt("while it starts"))
    cluster.wait_healthy("billing")
    check_ledger(cluster, told)


def test_a_cache_that_hangs_costs_hits_alone(cluster: Cluster, told: Told) -> None:
    cluster.pause("cache")
    try:
        used = told.generate(cluster, prompt("without a cache"))
    finally:
        cluster.resume("cache")
    assert used["hit_tokens"] == 0
    cluster.wait_healthy("cache")
    check_ledger(cluster, told)


def test_what_was_billed_is_what_the_cache_attests(cluster: Cluster, told: Told) -> None:
    found = cluster.ask("billing", "kvtier", "usage", "reconcile")
    assert found["requests"] == told.sums["request_count"]
    assert not [each for each in found["differences"] if not each["explained"]]


def test_nothing_was_said_that_an_operator_has_to_look_into(cluster: Cluster) -> None:
    for service in cluster.services():
        assert "Traceback" not in cluster.logs(service)
