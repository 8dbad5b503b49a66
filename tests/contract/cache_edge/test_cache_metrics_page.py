"""The Prometheus page: what docs/metrics.md names is there, and counts."""

import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from kvtier import bulk
from kvtier.v1 import cache_pb2

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def scrape(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def measured(make_service: Any) -> Any:
    return make_service(metrics_listen="127.0.0.1:0", metrics_owners_max=1)


def test_every_metric_is_documented_and_every_documented_one_is_there(measured: Any) -> None:
    page = scrape(measured.server.metrics_listen)
    served = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    served = {name for name in served if not name.endswith("_created")}
    documented = set(re.findall(r"`(kvtier_cache_\w+)`", DOCUMENT.read_text()))
    assert served == documented


def test_a_restore_shows_on_the_page(measured: Any, make_client: Any, tools: Any) -> None:
    client = make_client(measured.address)
    chain = tools.fresh_chain(3)
    client.store("r", chain, tools.filled_pages(chain))
    client.restore("r", chain, tools.empty_pages(3), 10)
    page = scrape(measured.server.metrics_listen)
    assert 'kvtier_cache_matched_blocks_total{tier="host"} 3.0' in page
    assert "kvtier_cache_ready_blocks_total 3.0" in page
    assert "kvtier_cache_sessions_open 1.0" in page
    assert re.search(r'kvtier_cache_tier_blocks\{tier="host"\} 3.0', page)


def test_the_largest_organisations_are_named_where_that_is_wanted(
    measured: Any, make_service: Any, open_peer: Any, tools: Any
) -> None:
    plain = make_service(metrics_listen="127.0.0.1:0")
    for service in (measured, plain):
        peer = open_peer(service, "stream")
        for owner, count in (("acme/search", 3), ("beta", 2), ("gamma", 1)):
            chain = tools.fresh_chain(count)
            run = cache_pb2.OwnerRun(owner=owner, block_count=count)
            reserved = peer.reserve(chain, owner_runs=[run])
            peer.commit(reserved, peer.write(reserved, chain))
    page = scrape(measured.server.metrics_listen)
    assert 'kvtier_cache_owner_blocks{owner="acme",tier="host"} 3.0' in page
    assert 'kvtier_cache_owner_blocks{owner="*",tier="host"} 3.0' in page
    (others,) = re.findall(r'kvtier_cache_owner_bytes\{owner="\*",tier="host"\} (\S+)', page)
    assert float(others) == 3 * tools.block_bytes
    assert "search" not in page
    assert "beta" not in page
    assert "acme" not in scrape(plain.server.metrics_listen)


def test_what_goes_over_the_bulk_lane_is_counted(
    measured: Any, make_client: Any, tools: Any
) -> None:
    client = make_client(measured.address, "bulk")
    chain = tools.fresh_chain(3)
    client.store("r", chain, tools.filled_pages(chain))
    pages = tools.empty_pages(3)
    assert len(client.restore("r", chain, pages, 10).tiers) == 3
    size = 3 * len(pages[0])
    page = scrape(measured.server.metrics_listen)
    for direction in ("received", "sent"):
        line = rf'kvtier_cache_bulk_payload_bytes_total{{direction="{direction}"}} (\S+)'
        found = re.search(line, page)
        assert found is not None
        assert float(found[1]) == size
    assert re.search(r"^kvtier_cache_bulk_lanes_open [1-9]", page, re.MULTILINE)
    host, _, port = measured.server.bulk_listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as stranger:
        stranger.sendall(bulk.pack(bulk.Frame(bulk.Kind.HELLO, length=32)) + bytes(32))
        assert stranger.recv(100)
    page = scrape(measured.server.metrics_listen)
    assert "kvtier_cache_bulk_refused_tickets_total 1.0" in page
