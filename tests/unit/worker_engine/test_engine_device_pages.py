"""Pages on a device: copies are under way while the engine goes on, and nobody waits for them."""

import threading
from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from tests.page_kinds import IdleCache, land
from worker.cache_port import RestoreResult
from worker.requests import EndReason, RequestId

PROMPT = list(range(3, 43))


@pytest.fixture(autouse=True)
def copies(pages_on_a_device: Any) -> Any:
    return pages_on_a_device


class LateCache(IdleCache):
    """Restores whatever is asked for, but only when the test lets it: bytes of other blocks."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.left = threading.Event()
        """The load that came late has its error, or has none."""

    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> Any:
        if request_id != "late":
            return super().restore(request_id, chain, pages, timeout_seconds)
        self.entered.set()
        assert self.release.wait(60)
        try:
            land(pages, [bytes([63]) * pages.page_bytes] * len(chain))
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.left.set()
        return RestoreResult((Tier.HOST,) * len(chain), MissReason.NONE)


def test_what_is_stored_comes_back(bench: Any, memory_cache: Any, copies: Any) -> None:
    bench.run(bench.engine(memory_cache), bench.request("a", PROMPT, new=9))
    (again,) = bench.run(bench.engine(memory_cache), bench.request("b", PROMPT, new=9))
    assert again.tokens() == bench.plain_greedy(PROMPT, 9)
    assert again.end.usage.hit_tokens_by_tier == {Tier.HOST: 32}
    assert [each.staged_count > 0 for each in copies] == [True, True]


def test_a_load_that_ends_after_its_request_was_cancelled_touches_no_page(
    bench: Any, watcher: Any
) -> None:
    cache = LateCache()
    engine = bench.engine(cache, load_threads=2, page_count=7)
    gone, after = watcher(), watcher()
    engine.submit(bench.request("late", PROMPT), gone)
    engine.step()
    assert cache.entered.wait(60)
    engine.cancel(RequestId("late"))
    other = PROMPT[::-1]
    engine.submit(bench.request("after", other, new=9), after)
    for _ in range(200):
        if after.ends:
            break
        if not engine.step():
            engine.wait(1.0)  # for its own load, which finds nothing
        engine.check_integrity()
    # It had all of the pool, while the call had not returned.
    assert after.tokens() == bench.plain_greedy(other, 9)
    cache.release.set()
    assert cache.left.wait(60)
    for _ in range(200):
        if not engine.step():
            break
        engine.wait(1.0)
    assert type(cache.error).__name__ == "RevokedError"
    (again,) = bench.run(engine, bench.request("again", other, new=9))
    assert again.end.usage.hit_tokens_by_tier == {Tier.GPU: 32}
    assert again.tokens() == after.tokens()


def test_no_memory_for_a_transfer_costs_the_transfer_only(
    bench: Any, memory_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(bench.engine(memory_cache), bench.request("a", PROMPT))
    known = dict(memory_cache.blocks)
    monkeypatch.setattr("tests.page_kinds.ThreadedCopies.staging", _no_memory)
    engine = bench.engine(memory_cache)
    (watcher,) = bench.run(engine, bench.request("b", PROMPT, new=9))
    assert watcher.tokens() == bench.plain_greedy(PROMPT, 9)
    assert watcher.end.end_reason is EndReason.LENGTH
    assert watcher.end.usage.hit_tokens == 0
    assert memory_cache.blocks == known


def test_a_store_that_hangs_is_given_up_for_its_pages(bench: Any) -> None:
    """There are few to lend on a device: here none."""
    cache = StuckStore()
    engine = bench.engine(cache, load_threads=1, page_count=6, running_requests_max=1)
    bench.run_beside_a_held_store(engine, PROMPT, cache.entered)
    assert engine.stats().skipped_stores_total == 1
    cache.release.set()
    assert cache.ended.wait(60)
    assert type(cache.error).__name__ == "RevokedError"
    engine.check_integrity()


class StuckStore(LateCache):
    """A store reads its pages only when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any = None) -> Any:
        self.entered.set()
        assert self.release.wait(60)
        try:
            with pages.lend([0]):
                return None
        except BaseException as error:
            self.error = self.error or error
            raise
        finally:
            self.ended.set()


def _no_memory(*args: Any) -> None:
    raise RuntimeError("CUDA out of memory")
