"""The engine measures what prompts cost, and says so with every restore."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from kvtier.blocks import MissReason
from worker.cache_port import RestoreResult, StoreResult
from worker.requests import CacheMode

PROMPT = list(range(3, 43))
OTHER = list(range(50, 90))
LONG = [3 + i % 100 for i in range(300)]


@dataclass
class AskedCache:
    """Has nothing, and remembers what it was told."""

    costs: list[float | None] = field(default_factory=list)

    def restore(self, *asked: Any) -> RestoreResult:
        self.costs.append(asked[5])
        return RestoreResult((), MissReason.NEVER_STORED)

    def store(self, request_id: str, chain: Any, pages: Any, hints: Any) -> StoreResult:
        return StoreResult(len(chain), 0, 0)

    def connected(self) -> bool:
        return True

    def close(self) -> None:
        return None


class TickingClock:
    """A millisecond for every look."""

    def __init__(self) -> None:
        self._ticks = itertools.count(100_000)

    def __call__(self) -> float:
        return next(self._ticks) / 1000


def test_the_first_restore_knows_no_cost_and_later_ones_do(bench: Any) -> None:
    cache = AskedCache()
    engine = bench.engine(cache, clock=TickingClock())
    for name, prompt in (("a", PROMPT), ("b", OTHER)):
        bench.run(engine, bench.request(name, prompt, new=1))
    first, second = cache.costs
    assert first is None
    assert second is not None
    assert second > 0
    assert engine.stats().prefill_tokens_per_second > 0


def test_prompts_that_come_first_are_part_of_the_cost(bench: Any) -> None:
    def cost(*before: Any) -> float:
        cache = AskedCache()
        engine = bench.engine(cache, clock=TickingClock())
        bench.run(engine, bench.request("warm", PROMPT, new=1))
        bench.run(engine, *before, bench.request("asked", OTHER, new=1))
        last = cache.costs[-1]
        assert last is not None
        return last

    alone = cost()
    behind = cost(bench.request("long", LONG, new=1, cache_mode=CacheMode.BYPASS))
    assert behind > 2 * alone
