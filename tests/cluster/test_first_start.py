"""The first start, with nothing there yet, is killed at every stage: the next one finishes it."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.compose_file import RUN_ONCE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

RUNS_MAX = 40
STEP_SECONDS = {"setup": 0.4, "model": 4.0}

HAS = {
    "gateway-secrets": {"server", "client"},
    "worker-secrets": {"server", "client"},
    "cache-secrets": {"server", "client"},
    "billing-secrets": {"server"},
}

LOAD_CERTIFICATES = """\
import pathlib, ssl
ssl.create_default_context(cafile="/volume/ca.pem")
names = {path.stem for path in pathlib.Path("/volume").glob("*.pem")} - {"ca"}
for name in names:
    ssl.create_default_context().load_cert_chain(f"/volume/{name}.pem", f"/volume/{name}.key")
print(*names)
"""

LOAD_MODEL = "from transformers import AutoModelForCausalLM as M; M.from_pretrained('/volume/demo')"


@pytest.fixture
def another(cluster: Cluster) -> Iterator[Cluster]:
    """A project with no volumes yet; nothing of it goes on running."""
    first = cluster.another("first")
    first.down()
    try:
        yield first
    finally:
        first.down()


def test_what_prepares_is_killed_at_every_stage(another: Cluster) -> None:
    for service in RUN_ONCE:
        another.prepare(service)
        assert another.run_to_its_end(service, STEP_SECONDS[service], RUNS_MAX)
    for volume, names in HAS.items():
        printed = another.beside("setup", "python", "-c", LOAD_CERTIFICATES, volume=volume)
        assert set(printed.split()) == names
    another.beside("model", "python", "-c", LOAD_MODEL, volume="models")
    password = another.beside("setup", "cat", "/volume/password", volume="postgres-secrets")
    line = another.beside("setup", "cat", "/volume/pgpass", volume="billing-secrets")
    assert line == f"postgres:5432:kvtier:kvtier:{password}"
    secret = another.beside("setup", "cat", "/volume/scope_secret", volume="worker-secrets")
    assert len(secret) == 64
    size = another.beside(
        "setup", "stat", "--format=%s", "/volume/pool_key", volume="cache-secrets"
    )
    assert size == "32"
