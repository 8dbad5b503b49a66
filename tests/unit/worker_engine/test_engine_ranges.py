"""What a load has brought so far is used: by its own request when the rest does not come, and by
others at once."""

import threading
from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from tests.page_kinds import IdleCache, in_turn
from worker.cache_port import RestoreResult
from worker.prefix_units import PrefixUnits
from worker.requests import LEASES_MAX, RequestId

PROMPT = list(range(3, 43))  # Five blocks of eight, four of which can be loaded.


pytestmark = pytest.mark.usefixtures("pages")


class HalfWayCache(IdleCache):
    """Two blocks land; the rest only when the test lets it, as garbage."""

    def __init__(self, blocks: dict[Any, bytes]) -> None:
        self.half_way = threading.Event()
        self.release = threading.Event()
        self._blocks = blocks

    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> RestoreResult:
        if self.half_way.is_set() or len(chain) < 4:
            return RestoreResult((), MissReason.NEVER_STORED)
        pages.leased("first")
        for index, block in enumerate(chain[:2]):
            self._land(pages, index, self._blocks[block])
        pages.landed([Tier.HOST, Tier.SSD])
        self.half_way.set()
        assert self.release.wait(60)
        pages.leased("second")
        for index in range(2, len(chain)):
            self._land(pages, index, bytes([63]) * pages.page_bytes)
        raise OSError("gone")

    def _land(self, pages: Any, index: int, content: bytes) -> None:
        (room,) = pages.room(index, 1)
        room[:] = memoryview(content)
        pages.push(index, [room])
        assert pages.settle(index, 1, in_turn) == 1


@pytest.fixture
def cache(bench: Any, memory_cache: Any) -> Any:
    bench.run(bench.engine(memory_cache), bench.request("a", PROMPT))
    made = HalfWayCache(memory_cache.blocks)
    yield made
    made.release.set()


def half_way(engine: Any, cache: Any, *requests: tuple[Any, Any]) -> None:
    for request, sink in requests:
        engine.submit(request, sink)
    engine.step()
    assert cache.half_way.wait(60)
    engine.step()
    engine.check_integrity()


def test_a_load_that_hangs_half_way_costs_the_rest_only(
    bench: Any, cache: Any, watcher: Any, clock: Any
) -> None:
    engine = bench.engine(cache, clock=clock, load_threads=1, page_count=7)
    seen = watcher()
    half_way(engine, cache, (bench.request("b", PROMPT, new=9), seen))
    assert engine.stats().loading_count == 1
    clock.now += 60.0
    while not seen.ends:
        engine.step()
        engine.check_integrity()
    assert seen.tokens() == bench.plain_greedy(PROMPT, 9)
    assert seen.end.usage.hit_tokens_by_tier == {Tier.HOST: 8, Tier.SSD: 8}
    assert seen.end.usage.miss_tokens == 24
    assert seen.end.usage.miss_reason is MissReason.UNAVAILABLE
    assert engine.stats().abandoned_transfers_total == 1
    assert engine.stats().restored_blocks_total == 2
    cache.release.set()
    while engine.stats().free_page_count + engine.stats().cached_page_count != 7:
        engine.wait(1.0)
        engine.step()
    (again,) = bench.run(engine, bench.request("c", PROMPT, new=9))
    assert again.tokens() == seen.tokens()
    # The second lease was taken for it when nobody waited any more; the third request had none.
    assert seen.end.usage.lease_ids == ("first",)
    assert again.end.usage.lease_ids == ()


def test_what_landed_is_anothers_while_the_rest_is_on_its_way(
    bench: Any, cache: Any, watcher: Any
) -> None:
    engine = bench.engine(cache, load_threads=1)
    loading, other = watcher(), watcher()
    # It parts from the first where that one's third block begins.
    parting = [*PROMPT[:16], *range(60, 76)]
    half_way(
        engine,
        cache,
        (bench.request("b", PROMPT), loading),
        (bench.request("c", parting, cache_timeout_seconds=0.0), other),
    )
    while not other.ends:
        engine.step()
        engine.check_integrity()
    assert other.tokens() == bench.plain_greedy(parting, 4)
    assert other.end.usage.hit_tokens_by_tier == {Tier.GPU: 16}
    assert not loading.events
    assert other.end.usage.lease_ids == ()


def test_what_landed_stays_when_its_request_is_cancelled(
    bench: Any, cache: Any, watcher: Any
) -> None:
    engine = bench.engine(cache, load_threads=1)
    cancelled = watcher()
    half_way(engine, cache, (bench.request("b", PROMPT), cancelled))
    engine.cancel(RequestId("b"))
    engine.step()
    engine.check_integrity()
    assert cancelled.end.usage.lease_ids == ("first",)
    (again,) = bench.run(engine, bench.request("c", PROMPT, cache_timeout_seconds=0.0))
    assert again.tokens() == bench.plain_greedy(PROMPT, 4)
    assert again.end.usage.hit_tokens_by_tier == {Tier.GPU: 16}


def test_part_of_a_unit_is_no_hit(bench: Any, cache: Any, watcher: Any, clock: Any) -> None:
    engine = bench.engine(cache, clock=clock, load_threads=1, units=PrefixUnits(whole=True))
    seen = watcher()
    half_way(engine, cache, (bench.request("b", PROMPT), seen))
    clock.now += 60.0
    while not seen.ends:
        engine.step()
        engine.check_integrity()
    assert seen.tokens() == bench.plain_greedy(PROMPT, 4)
    assert seen.end.usage.hit_tokens == 0


def test_a_load_that_breaks_half_way_keeps_what_came(bench: Any, cache: Any, watcher: Any) -> None:
    engine = bench.engine(cache, load_threads=1)
    cache.release.set()
    seen = watcher()
    engine.submit(bench.request("b", PROMPT, new=9), seen)
    while not seen.ends:
        engine.step() or engine.wait(1.0)
        engine.check_integrity()
    assert seen.tokens() == bench.plain_greedy(PROMPT, 9)
    assert seen.end.usage.hit_tokens == 16
    assert seen.end.usage.lease_ids == ("first", "second")


def test_usage_names_as_many_leases_as_an_event_holds(bench: Any, watcher: Any) -> None:
    class ManyLeases(IdleCache):
        def restore(self, request_id: str, chain: Any, pages: Any, *rest: Any) -> RestoreResult:
            for number in range(LEASES_MAX + 1):
                pages.leased(str(number))
            return RestoreResult((), MissReason.NEVER_STORED)

    (seen,) = bench.run(bench.engine(ManyLeases()), bench.request("a", PROMPT))
    assert seen.end.usage.lease_ids == tuple(map(str, range(LEASES_MAX)))
