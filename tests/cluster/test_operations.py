"""What docs/operations.md and the head of docker-compose.yml say to type is typed, and holds."""

import re
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.compose_file import LONG_RUNNING, SERVICES
from tests.cluster.images import ROOT
from tests.cluster.load import Caller, Load
from tests.cluster.told import Told, prompt

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
HEAD = (ROOT / "docker-compose.yml").read_text().partition("x-logging")[0]

BROUGHT_BACK = "and the ledger back"


def lines(text: str) -> list[str]:
    """Those of the first block that begins a line with `docker compose`, and what follows it."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("    docker compose"):
            found.append(line.strip())
        elif found:
            break
    return found


def test_the_ledger_is_backed_up_and_restored(
    cluster: Cluster, told: Told, caller: Caller, tmp_path: Path
) -> None:
    section = OPERATIONS.partition("In the compose file, the ledger, its key")[2]
    backup, _, restore = section.partition(BROUGHT_BACK)
    told.generate(cluster, prompt("before the copy"))
    told.check(cluster)
    with Load(caller, told, "backed up") as load:
        load.progress()
        for line in lines(backup):
            cluster.shell(line, tmp_path)
        load.progress()
    told.check(cluster)
    kept = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert kept.keys() == {"ledger.dump", "ledger_key.pem", "keys.json"}
    assert all(kept.values())
    cluster.shell(lines(backup)[0], tmp_path)  # nothing came since
    with Load(caller, told, "restored") as load:
        printed = [cluster.shell(line, tmp_path) for line in lines(restore)[:5]]
        assert len(printed) == 5
        load.progress()
        cluster.wait_healthy("billing")
        assert "holds" in cluster.shell(lines(restore)[5], tmp_path)
    assert not load.errors
    told.check(cluster)


def test_a_rolling_upgrade_fails_no_request(cluster: Cluster, told: Told, caller: Caller) -> None:
    found = re.search(r"for part in (.*); do", OPERATIONS)
    assert found
    parts = found[1].split()
    assert set(parts) == {name for name in LONG_RUNNING if "build" in SERVICES[name]} - {"mooncake"}
    with Load(caller, told, "rolled") as load:
        load.progress()
        for part in parts:
            failed = len(load.errors)
            cluster.anew(part)
            load.progress()
            assert len(load.errors) == failed or part == "gateway", load.errors[failed:]
    told.check(cluster)


def test_the_head_of_the_compose_file_says_what_works(
    cluster: Cluster, told: Told, tmp_path: Path
) -> None:
    key = ""
    typed = re.findall(r"^#   ((?:docker compose exec|curl) .*?)(?:  +#.*)?$", HEAD, re.MULTILINE)
    assert [line.split()[0] for line in typed] == ["docker"] * 5 + ["curl"]
    told.lost()  # its answer is for people, without the request's id
    for line in typed:
        if "KEY" in line:
            line = line.replace("KEY", key).replace("curl", "curl --silent --noproxy '*' --fail")
        printed = cluster.shell(line, tmp_path)
        if "keys create" in line:
            key = printed.strip()
            assert key.startswith("sk-kvtier-")
        elif "> ca.pem" not in line:
            assert printed
    assert '"demo"' in printed
