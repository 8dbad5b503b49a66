"""What `docker-compose.yml` starts would start, and listens to nobody outside."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from billing.settings import BillingSettings
from cache_service.settings import CacheSettings
from gateway.settings import GatewaySettings
from kvtier.service_settings import ServiceSettings
from kvtier.settings import load
from kvtier.tls import check_listeners
from worker.peers import Peers, peers_of
from worker.settings import WorkerSettings

SERVICES = yaml.safe_load((Path(__file__).resolve().parents[2] / "docker-compose.yml").read_text())[
    "services"
]
MODELS: dict[str, type[ServiceSettings]] = {
    "cache": CacheSettings,
    "billing": BillingSettings,
    "worker": WorkerSettings,
}


def settings(name: str) -> Any:
    environment = SERVICES[name]["environment"]
    return load(MODELS[name], env_prefix=f"KVTIER_{name.upper()}_", environment=environment)[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_service_starts_without_tls_because_it_is_on_a_unix_socket_alone(name: str) -> None:
    said = settings(name)
    check_listeners(said.addresses, said.security)
    assert said.addresses == [f"unix:/run/kvtier/{name}.sock"]
    assert not said.security.development
    assert "run:/run/kvtier" in SERVICES[name]["volumes"]
    assert SERVICES[name]["healthcheck"]["test"][-1] == said.addresses[0]
    assert "ports" not in SERVICES[name]


def test_they_find_each_other() -> None:
    worker = settings("worker")
    assert peers_of(worker) == Peers(None, None, None)
    assert [worker.cache.address] == settings("cache").addresses
    assert [worker.billing.address] == settings("billing").addresses
    assert settings("cache").billing.address == worker.billing.address


def test_the_gateway_listens_outside_with_tls_and_finds_the_worker() -> None:
    environment = SERVICES["gateway"]["environment"]
    said, _ = load(GatewaySettings, env_prefix="KVTIER_GATEWAY_", environment=environment)
    assert said.security.certificate_file is not None
    assert not said.security.development
    assert list(said.workers) == settings("worker").addresses
    assert [said.billing.address] == settings("billing").addresses
    ports = {port.partition(":")[2] for port in SERVICES["gateway"]["ports"]}
    assert ports == {a.rpartition(":")[2] for a in (said.listen, said.grpc_listen)}


def test_the_authoritys_key_lies_where_nothing_else_looks() -> None:
    made = SERVICES["tls"]
    mounts = {name: service.get("volumes", []) for name, service in SERVICES.items()}
    assert [name for name, own in mounts.items() if any("authority" in m for m in own)] == ["tls"]
    assert "gateway-tls:/tls:ro" in mounts["gateway"]
    said, _ = load(
        GatewaySettings,
        env_prefix="KVTIER_GATEWAY_",
        environment=SERVICES["gateway"]["environment"],
    )
    assert "--out=/tls" in made["command"]
    assert said.security.certificate_file == Path("/tls/gateway.pem")
    assert said.security.key_file == Path("/tls/gateway.key")
    assert SERVICES["gateway"]["depends_on"]["tls"]["condition"] == "service_completed_successfully"
