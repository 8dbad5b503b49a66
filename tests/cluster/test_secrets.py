"""No secret is in an image, in what the engine tells of a container, nor in an environment, a
command line, a log or a metrics page."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.compose_file import SERVICES
from tests.cluster.engine import Engine
from tests.cluster.image_layers import private_keys_in_layers
from tests.cluster.images import ROOT
from tests.cluster.load import Caller

pytestmark = [pytest.mark.cluster, pytest.mark.thorough, pytest.mark.timeout(3600)]

OWN_IMAGES = sorted(
    {said["image"] for said in SERVICES.values() if "build" in said and "deploy" not in said}
)
FILES_MIN = 1000

PLANTED = """\
FROM kvtier/service
USER root
COPY planted.pem /planted.pem
RUN rm /planted.pem
"""

FETCH = """\
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def secrets(cluster: Cluster, caller: Caller) -> dict[str, str]:
    """What to look for, by where it lies."""
    found = {"API key": caller.key}
    for service in cluster.services():
        if not any(mount["Destination"] == "/secrets" for mount in cluster.mounts(service)):
            continue
        for name in cluster.execute(service, "ls", "/secrets").split():
            if not name.endswith(".pem"):
                show = ("od", "-An", "-vtx1", "-w32") if name == "pool_key" else ("cat",)
                content = cluster.execute(service, *show, f"/secrets/{name}").replace(" ", "")
                found[f"{service} {name}"] = heart(content)
    ledger_key = cluster.execute("billing", "cat", "/data/ledger_key.pem")
    found["ledger's key"] = heart(ledger_key)
    assert all(len(secret) >= 32 for secret in found.values())
    return found


def heart(content: str) -> str:
    """Of a key in PEM the first line of the key itself; of others the last word."""
    lines = content.strip().splitlines()
    return lines[1] if content.startswith("-----BEGIN") else lines[-1].rpartition(":")[2]


def leaks(secrets: dict[str, str], text: str) -> list[str]:
    return [where for where, secret in secrets.items() if secret in text]


def test_all_kinds_are_looked_for(secrets: dict[str, str]) -> None:
    for each in ("gateway server.key", "gateway client.key", "worker-1 scope_secret"):
        assert each in secrets
    assert len(secrets["cache-1 pool_key"]) == 64
    for each in ("postgres password", "billing pgpass", "billing server.key", "API key"):
        assert each in secrets
    assert secrets["billing pgpass"] == secrets["postgres password"]
    for where, secret in secrets.items():
        assert where in leaks(secrets, f"said {secret}, by mistake")


def test_the_engine_tells_none(cluster: Cluster, secrets: dict[str, str]) -> None:
    for service in cluster.services():
        told = json.dumps(cluster.inspect(service))
        assert "KVTIER" in told or service in cluster.inspect(service)["Name"]
        assert not leaks(secrets, told), service


def test_no_process_has_one_in_its_environment_or_command(
    cluster: Cluster, secrets: dict[str, str]
) -> None:
    for service in cluster.services():
        words = ("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        said = cluster.execute(service, *words)
        assert "PATH=" in said
        assert not leaks(secrets, said), service


def test_no_log_has_one(cluster: Cluster, secrets: dict[str, str]) -> None:
    for service in [*cluster.services(), "setup", "model"]:
        said = cluster.logs(service)
        assert said, service
        assert not leaks(secrets, said), service


def test_no_metrics_page_has_one(cluster: Cluster, secrets: dict[str, str]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        if job["job_name"].startswith("kvtier-"):
            for target in job["static_configs"][0]["targets"]:
                service, _, port = target.partition(":")
                page = cluster.execute(service, "python", "-c", FETCH, port)
                assert "# TYPE kvtier_" in page
                assert not leaks(secrets, page), service


@pytest.mark.parametrize("image", OWN_IMAGES)
def test_no_layer_of_an_image_has_a_private_key(
    cluster: Cluster, engine: Engine, secrets: dict[str, str], image: str
) -> None:
    looked, found = private_keys_in_layers(engine, image)
    assert looked > FILES_MIN
    assert not found
    history = engine.docker("history", "--no-trunc", image)
    assert not leaks(secrets, history + engine.docker("image", "inspect", image))


def test_a_key_that_a_later_layer_takes_away_would_be_found(
    cluster: Cluster, engine: Engine, tmp_path: Path
) -> None:
    key = cluster.execute("gateway", "cat", "/secrets/server.key")
    (tmp_path / "planted.pem").write_text(key)
    (tmp_path / "Dockerfile").write_text(PLANTED)
    image = "kvtier-test-planted"
    engine.docker("build", "--quiet", "--tag", image, str(tmp_path), seconds_max=120.0)
    try:
        assert private_keys_in_layers(engine, image)[1] == ["planted.pem"]
    finally:
        engine.docker("image", "rm", image)
