"""A cache service that is slow, wrong or gone never fails a request."""

import threading
from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from tests.page_kinds import IdleCache, land
from worker.cache_port import RestoreResult
from worker.requests import EndReason, RequestId

PROMPT = list(range(3, 43))


pytestmark = pytest.mark.usefixtures("pages")


class HangingCache(IdleCache):
    """Calls return only when the test lets them; then they write garbage."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()

    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> Any:
        self.entered.set()
        assert self.release.wait(60)
        land(pages, [bytes([255]) * pages.page_bytes] * len(chain))
        return RestoreResult((Tier.HOST,) * len(chain), MissReason.NONE)

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any = None) -> Any:
        self.entered.set()
        assert self.release.wait(60)


class RaisingCache(HangingCache):
    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> Any:
        raise OSError("gone")

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any = None) -> Any:
        raise OSError("gone")


class BoastingCache(RaisingCache):
    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> Any:
        return RestoreResult((Tier.HOST,) * (len(chain) + 1), MissReason.NONE)


@pytest.mark.parametrize("kind", [RaisingCache, BoastingCache])
def test_cache_that_breaks_its_promise_is_a_miss(bench: Any, kind: Any) -> None:
    (watcher,) = bench.run(bench.engine(kind()), bench.request("a", PROMPT, new=9))
    assert watcher.tokens() == bench.plain_greedy(PROMPT, 9)
    assert watcher.end.usage.hit_tokens == 0
    assert watcher.end.usage.miss_reason is MissReason.UNAVAILABLE


def test_no_cache_is_a_miss(bench: Any) -> None:
    (watcher,) = bench.run(bench.engine(None), bench.request("a", PROMPT))
    assert watcher.end.usage.miss_reason is MissReason.UNAVAILABLE


def test_load_that_hangs_is_given_up_and_what_it_writes_later_harms_nobody(
    bench: Any, watcher: Any, clock: Any
) -> None:
    cache = HangingCache()
    # Just the pages of one request: the stuck pages must not be missed.
    engine = bench.engine(cache, clock=clock, load_threads=1, page_count=6)
    seen = watcher()
    engine.submit(bench.request("a", PROMPT, new=9), seen)
    engine.step()
    assert cache.entered.wait(60)
    assert engine.stats().loading_count == 1
    clock.now += 60.0
    engine.step()
    engine.check_integrity()
    assert engine.stats().abandoned_transfers_total == 1
    engine.step()
    cache.release.set()
    while engine.step() or not seen.ends:
        engine.check_integrity()
    assert seen.tokens() == bench.plain_greedy(PROMPT, 9)
    assert seen.end.end_reason is EndReason.LENGTH
    assert seen.end.usage.load_seconds == 60.0
    assert (seen.end.usage.hit_tokens, seen.end.usage.miss_tokens) == (0, 40)
    (again,) = bench.run(engine, bench.request("b", PROMPT, new=9))
    assert again.tokens() == seen.tokens()


def test_request_behind_a_stuck_store_runs_without_the_cache(
    bench: Any, watcher: Any, clock: Any
) -> None:
    cache = HangingCache()
    engine = bench.engine(cache, clock=clock, load_threads=1, page_count=6)
    first, second = watcher(), watcher()
    engine.submit(bench.request("a", PROMPT[:8], new=1), first)  # too short to load
    while not first.ends:
        engine.step()
    assert cache.entered.wait(60)
    clock.now += 60.0
    engine.submit(bench.request("b", PROMPT[::-1], new=9), second)
    while not second.ends:
        engine.step()
        engine.check_integrity()
    assert second.tokens() == bench.plain_greedy(PROMPT[::-1], 9)
    assert engine.stats().skipped_stores_total > 0
    cache.release.set()


@pytest.mark.parametrize("others", [0, 2])
def test_pages_that_only_a_hung_store_holds_are_waited_for_no_longer_than_a_load(
    bench: Any, watcher: Any, clock: Any, others: int
) -> None:
    """Also where more stores wait behind the one that hangs."""
    cache = HangingCache()
    engine = bench.engine(
        cache, clock=clock, load_threads=1, page_count=6, load_timeout_seconds=2.0
    )
    for n in range(1 + others):  # too short to load
        first = watcher()
        engine.submit(bench.request(f"a{n}", [9 + n, *PROMPT[:7]], new=1), first)
        while not first.ends:
            engine.step()
    assert cache.entered.wait(60)
    second = watcher()
    engine.submit(bench.request("b", PROMPT[::-1], new=4), second)
    engine.step()
    assert engine.stats().waiting_count == 1
    clock.now += 1.9
    engine.step()
    assert engine.stats().waiting_count == 1
    clock.now += 0.2
    for _ in range(50):
        engine.step()
        engine.check_integrity()
    assert second.tokens() == bench.plain_greedy(PROMPT[::-1], 4)
    assert second.end.usage.queue_seconds == pytest.approx(2.1)
    cache.release.set()
    while engine.stats().free_page_count + engine.stats().cached_page_count != 6:
        engine.wait(1.0)
        engine.step()
    engine.check_integrity()


def test_a_store_takes_its_time_where_nobody_waits_for_its_pages(
    bench: Any, watcher: Any, clock: Any
) -> None:
    cache = HangingCache()
    engine = bench.engine(cache, clock=clock, load_threads=1, load_timeout_seconds=2.0)
    first = watcher()
    engine.submit(bench.request("a", PROMPT[:8], new=1), first)
    while not first.ends:
        engine.step()
    assert cache.entered.wait(60)
    clock.now += 10.0
    engine.step()
    assert engine.stats().abandoned_transfers_total == 0
    cache.release.set()


def test_request_cancelled_while_loading_leaves_its_pages_to_the_transfer(
    bench: Any, watcher: Any, clock: Any, pages: str
) -> None:
    """On a device it takes them with it."""
    cache = HangingCache()
    engine = bench.engine(cache, clock=clock, load_threads=1)
    seen = watcher()
    engine.submit(bench.request("a", PROMPT), seen)
    engine.step()
    assert cache.entered.wait(60)
    engine.cancel(RequestId("a"))
    engine.step()
    engine.check_integrity()
    assert seen.end.end_reason is EndReason.CANCELLED
    stats = engine.stats()
    left = 4 if pages == "in place" else 0
    assert stats.free_page_count == stats.page_count - left
    cache.release.set()
    while engine.stats().free_page_count != stats.page_count:
        engine.wait(1.0)
        engine.step()
    engine.check_integrity()


def test_other_requests_compute_while_one_loads(bench: Any, watcher: Any, clock: Any) -> None:
    cache = HangingCache()
    engine = bench.engine(cache, clock=clock, load_threads=1)
    loading, short = watcher(), watcher()
    engine.submit(bench.request("loading", PROMPT), loading)
    engine.submit(bench.request("short", PROMPT[-5:], new=3), short)
    while not short.ends:
        engine.step()
    assert not loading.events
    cache.release.set()


def test_pages_that_a_hung_store_holds_cost_a_running_request_no_step(
    bench: Any, clock: Any
) -> None:
    cache = HangingCache()
    engine = bench.engine(cache, clock=clock, load_threads=1, page_count=6)
    bench.run_beside_a_held_store(engine, PROMPT, cache.entered)
    assert engine.stats().abandoned_transfers_total == 0
    cache.release.set()
    for _ in range(200):
        stats = engine.stats()
        if stats.free_page_count + stats.cached_page_count == 6:
            break
        engine.wait(1.0)
        engine.step()
    engine.check_integrity()
    assert engine.stats().free_page_count + engine.stats().cached_page_count == 6
