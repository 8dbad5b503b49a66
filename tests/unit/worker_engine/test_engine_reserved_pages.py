"""Whoever was put back so often that its pages are reserved gets them, whatever was lent."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from worker.cache_port import RestoreResult, StoreResult
from worker.requests import EndReason

FIRST = [*range(3, 67)]
OTHER = [*range(70, 78)]


class SlowStores:
    """A cache service whose stores return when they are let."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.let = threading.Event()

    def restore(self, *args: Any) -> RestoreResult:
        restored: RestoreResult = self._memory.restore(*args)
        return restored

    def store(self, *args: Any) -> StoreResult:
        assert self.let.wait(30.0)
        stored: StoreResult = self._memory.store(*args)
        return stored

    def connected(self) -> bool:
        return True

    def close(self) -> None:
        self.let.set()


def test_pages_lent_to_the_first_are_not_kept_from_who_reserved_them(
    bench: Any,
    watcher: Callable[[], Any],
    memory_cache: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first takes pages against its own store. When that is over, they are missing from what
    another has reserved: without a way out neither would ever get on."""
    cache = SlowStores(memory_cache)
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
