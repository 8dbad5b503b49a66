"""Whoever was put back so often that its pages are reserved gets them, whatever was lent."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvtier.keys import BlockHash
from tests.unit.worker_engine.conftest import Bench, MemoryCache
from worker.cache_port import PageBytes, StoreResult
from worker.requests import EndReason

FIRST = [*range(3, 67)]
OTHER = [*range(70, 78)]


class SlowStores(MemoryCache):
    """Stores return when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        hints: Any = None,
    ) -> StoreResult:
        assert self.let.wait(30.0)
        return super().store(request_id, chain, pages, hints)


def test_pages_lent_to_the_first_are_not_kept_from_who_reserved_them(
    bench: Bench, watcher: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes pages against its own store. When that is over, they are missing from what
    another has reserved: without a way out neither would ever get on."""
    cache = SlowStores()
    engine = bench.engine(cache, page_count=18, load_threads=1)
    first, second = watcher(), watcher()
    engine.submit(bench.request("first", FIRST, new=60), first)
    while not first.tokens():
        engine.step()
    # From now on whoever comes is one that was put back often enough.
    monkeypatch.setattr("worker.admitting.PREEMPTIONS_MAX", 0)
    engine.submit(bench.request("reserving", OTHER, new=49), second)
    while len(first.tokens()) < 38:
        assert engine.step()
        engine.check_integrity()
    assert engine.stats().running_count == 2
    assert engine.stats().preemptions_total == 0
    cache.let.set()
    engine.wait(30.0)
    for _ in range(500):
        if first.ends and second.ends:
            break
        if not engine.step() and engine.stats().loading_count:
            engine.wait(30.0)
        engine.check_integrity()
    for seen, prompt, new in ((first, FIRST, 60), (second, OTHER, 49)):
        assert seen.end.end_reason is EndReason.LENGTH
        assert seen.tokens() == bench.plain_greedy(prompt, new)
    assert first.end.usage.miss_tokens == len(FIRST)
