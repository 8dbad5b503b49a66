"""What `docker-compose.yml` starts would start, finds its peers, and is shut to everybody else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from billing.settings import BillingSettings
from cache_service.settings import CacheSettings
from gateway.settings import GatewaySettings
from kvtier.settings import SettingsModel, load
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONCE = {"setup", "model"}
MODELS: dict[str, type[SettingsModel]] = {
    "cache": CacheSettings,
    "billing": BillingSettings,
    "worker": WorkerSettings,
    "gateway": GatewaySettings,
}
OURS = [name for name in SERVICES if name.split("-")[0] in MODELS]
PAIRS = [("worker-1", "cache-1"), ("worker-2", "cache-2")]
SECRETS = {
    "gateway-secrets": {"gateway"},
    "worker-secrets": {"worker-1", "worker-2", "worker-1-gpu", "worker-2-gpu"},
    "cache-secrets": {"cache-1", "cache-2"},
    "billing-secrets": {"billing"},
    "postgres-secrets": {"postgres"},
    "grafana-secrets": {"grafana"},
}


def settings(name: str) -> Any:
    room = name.split("-")[0]
    environment = SERVICES[name]["environment"]
    return load(MODELS[room], env_prefix=f"KVTIER_{room.upper()}_", environment=environment)[0]


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", ()))


def mounts(name: str) -> dict[str, str]:
    """Volume or path by the place where it is mounted, without how."""
    parts = [mount.split(":") for mount in SERVICES[name].get("volumes", ())]
    return {place: source for source, place, *_ in parts}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_has_to(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    if "build" not in service:  # the Dockerfile's own have a user by it
        assert service["user"] not in ("root", "0")
        assert re.search(r":v?\d", service["image"]), "a version, so that it is the same tomorrow"
    if name in ONCE:
        assert service["restart"] == "no"
        assert service["network_mode"] == "none"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert service["networks"]


def test_only_the_gateways_ports_are_for_others() -> None:
    published = {name: said["ports"] for name, said in SERVICES.items() if "ports" in said}
    assert set(published) == {"gateway", "prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in published[name])
    said = settings("gateway")
    ports = {port.partition(":")[2] for port in published["gateway"]}
    assert ports == {address.rpartition(":")[2] for address in (said.listen, said.grpc_listen)}
    internal = {name for name, said in FILE["networks"].items() if said and said.get("internal")}
    for name in set(SERVICES) - set(published) - ONCE:
        assert networks(name) <= internal


@pytest.mark.parametrize("name", OURS)
def test_a_service_listens_and_calls_with_tls(name: str) -> None:
    said = settings(name)
    assert not said.security.development
    secrets = [said.security.certificate_file, said.security.key_file]
    if name != "gateway":
        secrets.append(said.security.client_ca_file)
    if name != "billing":
        secrets += [said.client.ca_file, said.client.certificate_file, said.client.key_file]
    assert all(file is not None and file.parent == Path("/secrets") for file in secrets)
    if name != "gateway":
        unix = next(address for address in said.addresses if address.startswith("unix:"))
        assert SERVICES[name]["healthcheck"]["test"][-1] == unix


@pytest.mark.parametrize(("worker", "cache"), PAIRS)
def test_a_worker_shares_sockets_with_its_own_cache(worker: str, cache: str) -> None:
    for name in (worker, f"{worker}-gpu"):
        address = settings(name).cache.address
        assert address in settings(cache).addresses
        assert Path(address.removeprefix("unix:")).parent == Path("/run/kvtier")
        assert mounts(name)["/run/kvtier"] == mounts(cache)["/run/kvtier"]
        assert SERVICES[name]["depends_on"][cache]["condition"] == "service_healthy"
    others = {mounts(name)["/run/kvtier"] for pair in PAIRS if worker not in pair for name in pair}
    assert mounts(worker)["/run/kvtier"] not in others


def test_each_has_data_of_its_own() -> None:
    kept = [mounts(name)["/data"] for name in OURS if not name.endswith("-gpu")]
    assert len(kept) == len(set(kept))
    assert set(kept) <= set(FILE["volumes"])


def test_they_find_each_other() -> None:
    reached = {f"{name}:{settings(name).listen.rpartition(':')[2]}" for name in OURS}
    called = {(name, settings(name).billing.address) for name in OURS if name != "billing"}
    gateway = settings("gateway")
    called |= {("gateway", address) for address in gateway.workers}
    called |= {("gateway", cache) for cache in gateway.caches.values()}
    assert set(gateway.caches) == set(gateway.workers)
    for caller, address in called:
        assert address in reached
        assert networks(caller) & networks(address.partition(":")[0])
    for worker, cache in gateway.caches.items():
        assert (worker.partition(":")[0], cache.partition(":")[0]) in PAIRS


def test_certificates_are_of_the_names_that_are_called() -> None:
    script = (ROOT / "deploy" / "setup.sh").read_text()
    for room in ("worker", "cache", "billing"):
        (names,) = re.findall(rf"^certificates {room} --server=server=(\S+)", script, re.MULTILINE)
        mine = {name for name in OURS if name.split("-")[0] == room and not name.endswith("gpu")}
        assert set(names.split(",")) == mine
    for room, role in (("worker", "engine"), ("cache", "cache"), ("gateway", "gateway")):
        assert re.search(rf"^certificates {room} .*=kvtier://{role}$", script, re.MULTILINE)


def test_the_shared_tier_is_one_for_both() -> None:
    shared = {name: settings(name).shared for name in ("cache-1", "cache-2")}
    for name, said in shared.items():
        assert said.url == "mooncake://mooncake:50051"
        assert said.sealing == "aes_256_gcm"
        # By a name that it has in that network alone, so that blocks go nowhere else.
        assert said.pool_host in SERVICES[name]["networks"]["shared"]["aliases"]
    first, second = (said.model_copy(update={"pool_host": ""}) for said in shared.values())
    assert first == second
    assert "--rpc_port=50051" in SERVICES["mooncake"]["command"]
    members = {name for name in SERVICES if "shared" in networks(name)}
    assert members == {"cache-1", "cache-2", "mooncake", "prometheus"}


def test_the_ledger_is_on_postgresql_and_billing_alone_reaches_it() -> None:
    url = settings("billing").database_url.get_secret_value()
    assert url == "postgresql://kvtier@postgres:5432/kvtier"  # no password in it
    assert {name for name in SERVICES if "ledger" in networks(name)} == {"billing", "postgres"}
    assert mounts("postgres")["/var/lib/postgresql/data"] == "postgres-data"


def test_a_secret_is_in_no_file_and_in_the_volume_of_who_uses_it_alone() -> None:
    users: dict[str, set[str]] = {}
    for name in SERVICES:
        for source in mounts(name).values():
            users.setdefault(source, set()).add(name)
    assert users["authority"] == {"setup"}
    for volume, who in SECRETS.items():
        assert users[volume] == who | {"setup"}
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY", key):
                assert str(value).startswith(("/secrets/", "/data/keys.json")), name
        for volume in set(mounts(name).values()) & set(SECRETS):
            assert name == "setup" or f"{volume}:/secrets:ro" in service["volumes"]


def test_prometheus_asks_every_metrics_page_there_is() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    asked = {
        (job["job_name"], target)
        for job in config["scrape_configs"]
        for target in job["static_configs"][0]["targets"]
    }
    served = set()
    for name in OURS:
        if not name.endswith("-gpu"):
            port = settings(name).metrics_listen.rpartition(":")[2]
            served.add((f"kvtier-{name.split('-')[0]}", f"{name}:{port}"))
    others = {("mooncake", "mooncake:9003"), ("prometheus", "localhost:9090")}
    assert asked == served | others
    for _, target in asked - {("prometheus", "localhost:9090")}:
        assert networks("prometheus") & networks(target.partition(":")[0])
    assert mounts("prometheus")["/etc/prometheus"] == "./deploy/prometheus"


@pytest.mark.parametrize("name", ["worker-1", "worker-2"])
def test_a_worker_beside_a_gpu_differs_in_that_alone(name: str) -> None:
    plain, gpu = SERVICES[name], SERVICES[f"{name}-gpu"]
    assert plain["profiles"] == ["cpu"]
    assert gpu["profiles"] == ["gpu"]
    own = {"profiles", "build", "image", "environment", "mem_limit", "deploy"}
    assert {k: v for k, v in plain.items() if k not in own} == {
        k: v for k, v in gpu.items() if k not in own
    }
    changed = set(gpu["environment"].items()) ^ set(plain["environment"].items())
    assert {key for key, _ in changed} == {"KVTIER_WORKER_DEVICE", "KVTIER_WORKER_POOL__PAGE_BYTES"}
    assert settings(f"{name}-gpu").device == "cuda"
    assert name in gpu["networks"]["inside"]["aliases"]


def test_without_a_word_the_workers_of_the_processor_start() -> None:
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()


def test_what_is_mounted_from_here_is_here() -> None:
    for name in SERVICES:
        for source in mounts(name).values():
            assert (
                (ROOT / source).exists() if source.startswith("./") else source in FILE["volumes"]
            )
