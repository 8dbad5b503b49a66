"""A cache service that meters what it keeps, and billing that charges it, as processes: the service
is killed with -9, ended well, and started again. What is charged is at least what was noted and
never more than what was kept; nothing is charged twice.
"""

import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.keys import NamespaceId
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from tests.fault.cache_process.conftest import BLOCK_BYTES
from tests.fault.cache_process.test_attestations_through_kills import Billing
from tests.page_kinds import ListClient
from worker.cache_port import CacheHints

pytestmark = pytest.mark.slow

BLOCKS = 8
BLOCK_TOKENS = 64
TOKENS = BLOCKS * BLOCK_TOKENS
INTERVAL = 0.25
BOOK = """
format = 2
[[versions]]
name = "kept"
effective_time = 2020-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "*"
per = 1
hit = "1"
miss = "1"
output = "1"
storage = { price = "1", meter = "exact_seconds" }
"""


class World:
    def __init__(self, start: Any, billing: Billing) -> None:
        self.start, self.billing = start, billing

    def open(self) -> tuple[Any, str]:
        cache = self.start(
            f"billing.address={self.billing.address}",
            "billing.backoff_seconds_max=0.3",
            f"metering.interval_seconds={INTERVAL}",
            "node=cache-1",
        )
        return cache, cache.ready()

    def store(self, address: str, payloads: Any, number: int, owner: str = "acme/x") -> None:
        space = NamespaceId(bytes(range(32)))
        client = ListClient(
            address, space, BLOCK_BYTES, BLOCK_TOKENS, "test", model="demo", store_seconds_max=5.0
        )
        chain = payloads.chain(number, BLOCKS)
        hints = CacheHints(owners=((owner, None),)) if owner else CacheHints()
        assert client.store(f"s{number}", chain, payloads.pages(chain), hints).refused_count == 0
        client.close()

    def lines(self) -> dict[str, float]:
        """Token-seconds that are charged, by tier; and the ledger holds."""
        with grpc.insecure_channel(self.billing.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            try:
                invoice = stub.GetInvoice(usage_pb2.GetInvoiceRequest(tenant_id="acme"), timeout=30)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return {}
            verified = stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=30)
        assert verified.verified
        found: dict[str, float] = {}
        for line in invoice.invoice.lines:
            assert (line.model, line.token_class) == ("demo", "storage")
            tier = line.rule.partition(",")[0]
            found[tier] = found.get(tier, 0.0) + line.quantity_tokens * 3.6e-3
        return found

    def until_charged(self, more_than: float) -> dict[str, float]:
        until = time.monotonic() + 30
        while (found := self.lines()).get("host", 0.0) <= more_than:
            assert time.monotonic() < until, found
            time.sleep(0.1)
        return found


@pytest.fixture
def world(start: Any, tmp_path: Path) -> Any:
    (tmp_path / "prices.toml").write_text(BOOK)
    billing = Billing(tmp_path / "billing", f"price_book={tmp_path / 'prices.toml'}")
    yield World(start, billing)
    billing.stop()


def test_what_was_kept_is_charged_once_through_kills_and_ends(world: World, payloads: Any) -> None:
    cache, address = world.open()
    began = time.monotonic()
    world.store(address, payloads, 1)
    world.store(address, payloads, 2, owner="")
    kept_at_least = time.monotonic()
    time.sleep(4 * INTERVAL + 1.0)
    killed = time.monotonic()
    cache.signal(signal.SIGKILL)
    cache.end()
    ended = time.monotonic()
    assert world.lines() == {}, "the hour is not over"

    # The next start ends what was noted last.
    cache, address = world.open()
    first = world.until_charged(0.0)
    assert first["host"] <= TOKENS * (ended - began)
    # An interval is lost at most; ticks and the journal's thread take their part.
    assert first["host"] >= TOKENS * (killed - kept_at_least - INTERVAL - 1.0)

    # Killed before anything is noted, and started again: nothing is said twice.
    for _ in range(2):
        cache.signal(signal.SIGKILL)
        cache.end()
        cache, address = world.open()
    assert world.until_charged(0.0)["host"] == pytest.approx(first["host"])

    began = time.monotonic()
    world.store(address, payloads, 3)
    kept_at_least = time.monotonic()
    time.sleep(1.0)
    stopped = time.monotonic()
    cache.signal(signal.SIGTERM)
    assert cache.end()[0] == 0
    ended = time.monotonic()
    cache, _ = world.open()
    second = world.until_charged(first["host"])
    more = second["host"] - first["host"]
    assert TOKENS * (stopped - kept_at_least) <= more + 1 <= 1 + TOKENS * (ended - began)
    cache.signal(signal.SIGTERM)
    assert cache.end()[0] == 0


def test_what_the_ssd_still_holds_is_metered_from_the_restart(world: World, payloads: Any) -> None:
    cache, address = world.open()
    world.store(address, payloads, 1)
    cache.signal(signal.SIGTERM)  # All goes to the SSD.
    assert cache.end()[0] == 0
    cache, address = world.open()
    began = time.monotonic()
    before = world.until_charged(0.0).get("ssd", 0.0)
    time.sleep(1.0)
    waited = time.monotonic() - began
    cache.signal(signal.SIGTERM)
    assert cache.end()[0] == 0
    cache, address = world.open()
    until = time.monotonic() + 30
    while (after := world.lines().get("ssd", 0.0)) < before + TOKENS * waited:
        assert time.monotonic() < until, (before, after)
        time.sleep(0.1)
    cache.signal(signal.SIGTERM)
    assert cache.end()[0] == 0
