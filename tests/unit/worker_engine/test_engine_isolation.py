"""What a stranger's request costs and is told: the same, whatever a private scope holds.

Two worlds that differ in one thing: in one of them the owner asked for the very prompt that the
stranger then asks. Time is what the engine does, counted: steps, tokens, calls and pages.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from kvtier.blocks import Tier
from kvtier.keys import PUBLIC_SALT, BlockHash, ChainScope, ScopeSalt, block_chain
from kvtier.scopes import ScopePath, chain_scope
from worker.cache_port import RestoreResult, StoreResult
from worker.landing import PageBytes
from worker.requests import CacheMode

SECRET = bytes(range(32))
PROMPT = list(range(3, 43))  # 40 tokens: five blocks of eight
OTHER = list(range(43, 83))
OWNER = ScopePath("acme", "search", "ann")


class CountingCache:
    """What the cache service is asked by one engine: how often, how much, with what answer."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.calls: list[tuple[str, int, object]] = []

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        timeout_seconds: float,
        hints: Any = None,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        result: RestoreResult = self._cache.restore(request_id, chain, pages, timeout_seconds)
        self.calls.append(("restore", len(chain), result))
        return result

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        hints: Any = None,
    ) -> StoreResult:
        result: StoreResult = self._cache.store(request_id, chain, pages)
        self.calls.append(("store", len(chain), result))
        return result

    def connected(self) -> bool:
        return True

    def close(self) -> Any:
        return None


def scope(path: str, *ends: int, secret: bytes = SECRET) -> ChainScope:
    parsed = ScopePath.parse(path)
    return chain_scope(secret, parsed, ends or (0,) * parsed.level)


def observed(
    bench: Any, cache: Any, owners: Sequence[int], stranger: ChainScope, **more: Any
) -> Any:
    """Everything a stranger can see or time of its own request, after the owner asked `owners`."""
    counting = CountingCache(cache)
    engine = bench.engine(counting, **more)
    bench.run(engine, bench.request("owner", owners, scope=scope(str(OWNER))))
    before, asked = asdict(engine.stats()), len(counting.calls)
    (watcher,) = bench.run(engine, bench.request("stranger", PROMPT, scope=stranger))
    after = asdict(engine.stats())
    work = {name: after[name] - before[name] for name in after}
    return watcher.events, work, counting.calls[asked:], after


@pytest.mark.parametrize(
    "stranger", ["umbra", "umbra/search/ann", "acme", "acme/search", "acme/search/bob", "acme/ann"]
)
@pytest.mark.parametrize("pages", [64, 8])
def test_a_stranger_is_served_alike_whether_its_prompt_is_cached_for_others(
    bench: Any, memory_cache: Any, stranger: str, pages: int
) -> None:
    theirs = scope(stranger)
    cached = observed(bench, memory_cache, PROMPT, theirs, page_count=pages)
    memory_cache.blocks.clear()
    absent = observed(bench, memory_cache, OTHER, theirs, page_count=pages)
    assert cached == absent
    assert cached[0][-1].usage.hit_tokens == 0


def test_its_owner_is_served_otherwise(bench: Any, memory_cache: Any) -> None:
    """The comparison above can tell a hit from a miss."""
    mine = scope(str(OWNER))
    cached = observed(bench, memory_cache, PROMPT, mine)
    memory_cache.blocks.clear()
    absent = observed(bench, memory_cache, OTHER, mine)
    assert cached[0][-1].usage.hit_tokens == 32
    assert absent[0][-1].usage.hit_tokens == 0
    assert all(one != other for one, other in zip(cached, absent, strict=True))


@pytest.mark.parametrize(
    ("path", "hit"),
    [("acme/search/ann", 32), ("acme/search/bob", 24), ("acme/lab/ann", 16), ("umbra/lab/ann", 8)],
)
def test_a_chain_hits_each_rung_as_far_as_it_is_shared(
    bench: Any, memory_cache: Any, path: str, hit: int
) -> None:
    """From the pages of one engine, and from the cache service by another."""
    engine = bench.engine(memory_cache)
    bench.run(engine, bench.request("owner", PROMPT, scope=scope(str(OWNER), 1, 2, 3)))
    for place, tier in ((engine, Tier.GPU), (bench.engine(memory_cache), Tier.HOST)):
        request = bench.request(
            tier.name, PROMPT, scope=scope(path, 1, 2, 3), cache_mode=CacheMode.READ_ONLY
        )
        (watcher,) = bench.run(place, request)
        assert watcher.end.usage.hit_tokens_by_tier == {tier: hit}


@pytest.mark.parametrize("samples", [1, 3])
def test_generated_tokens_and_every_sample_stay_in_the_requests_own_scope(
    bench: Any, memory_cache: Any, samples: int
) -> None:
    mine = scope(str(OWNER), 1, 2, 2)
    request = bench.request("owner", PROMPT, new=20, scope=mine, sample_count=samples)
    (watcher,) = bench.run(bench.engine(memory_cache), request)
    allowed: set[BlockHash] = set()
    for index in range(samples):
        allowed |= set(block_chain(bench.loaded.namespace, mine, [*PROMPT, *watcher.tokens(index)]))
    assert set(memory_cache.blocks) <= allowed
    assert len(memory_cache.blocks) >= 7


@pytest.mark.parametrize(
    "guess",
    [
        scope(str(OWNER), secret=bytes(32)),
        scope(str(OWNER), 1, 2, 3, secret=bytes(32)),
        ChainScope((PUBLIC_SALT,)),
        ChainScope((ScopeSalt(b"acme"),)),
        ChainScope((ScopeSalt(b"acme/search/ann"),)),
        ChainScope((ScopeSalt(bytes(32)),)),
        # The right salts of the owner's wider scopes, and his own mixed in too late or too early.
        scope("acme"),
        scope("acme/search"),
        scope(str(OWNER), 1, 1, 1),
        scope(str(OWNER), 0, 0, 1),
    ],
)
def test_guessed_hashes_find_nothing(bench: Any, memory_cache: Any, guess: ChainScope) -> None:
    bench.run(bench.engine(memory_cache), bench.request("o", PROMPT, scope=scope(str(OWNER))))
    (watcher,) = bench.run(bench.engine(memory_cache), bench.request("g", PROMPT, scope=guess))
    assert watcher.end.usage.hit_tokens == 0
