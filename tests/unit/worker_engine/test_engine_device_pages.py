"""Pages on a device: transfers land in host memory, and the pages are never theirs to keep."""

import threading
from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from worker.cache_port import RestoreResult
from worker.kv_pages import KvPages
from worker.requests import EndReason, RequestId

PROMPT = list(range(3, 43))


class DevicePages(KvPages):
    """What a device's pages do to transfers, in host memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.direct = False


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.KvPages", DevicePages)


class LateCache:
    """Restores whatever is asked for, but only when the test lets it: bytes of other blocks."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()

    def restore(
        self, request_id: str, chain: Any, pages: Any, timeout_seconds: float, *costs: Any
    ) -> Any:
        if request_id != "late":
            return RestoreResult((), MissReason.NEVER_STORED)
        self.entered.set()
        assert self.release.wait(60)
        for page in pages:
            page[:] = 63
        return RestoreResult((Tier.HOST,) * len(chain), MissReason.NONE)

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any = None) -> Any:
        return None

    def connected(self) -> bool:
        return True

    def close(self) -> None:
        return None


def test_what_is_stored_comes_back(bench: Any, memory_cache: Any) -> None:
    bench.run(bench.engine(memory_cache), bench.request("a", PROMPT, new=9))
    (again,) = bench.run(bench.engine(memory_cache), bench.request("b", PROMPT, new=9))
    assert again.tokens() == bench.plain_greedy(PROMPT, 9)
    assert again.end.usage.hit_tokens_by_tier == {Tier.HOST: 32}


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
    while not after.ends:
        engine.step()
        engine.check_integrity()
    cache.release.set()
    while not engine.step():
        engine.wait(1.0)
    (again,) = bench.run(engine, bench.request("again", other, new=9))
    assert again.end.usage.hit_tokens_by_tier == {Tier.GPU: 32}
    assert again.tokens() == after.tokens() == bench.plain_greedy(other, 9)


@pytest.mark.parametrize("copying", ["export_bytes", "landing_bytes"])
def test_no_memory_for_a_transfer_costs_the_transfer_only(
    bench: Any, memory_cache: Any, monkeypatch: pytest.MonkeyPatch, copying: str
) -> None:
    bench.run(bench.engine(memory_cache), bench.request("a", PROMPT))
    monkeypatch.setattr(DevicePages, copying, _no_memory)
    engine = bench.engine(memory_cache)
    (watcher,) = bench.run(engine, bench.request("b", PROMPT, new=9))
    assert watcher.tokens() == bench.plain_greedy(PROMPT, 9)
    assert watcher.end.end_reason is EndReason.LENGTH
    assert engine.stats().skipped_stores_total == (2 if copying == "export_bytes" else 0)


def _no_memory(*args: Any) -> None:
    raise RuntimeError("CUDA out of memory")
