"""What a request reuses, and what it says about it."""

from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SALT, PUBLIC_SCOPE, ChainScope, ScopeSalt, block_chain
from worker.requests import CacheMode, EndReason
from worker.sampling import Sampling

PROMPT = list(range(3, 43))  # 40 tokens: five blocks of eight


def test_cold_greedy_tokens_are_those_of_the_plain_model(bench: Any) -> None:
    (watcher,) = bench.run(bench.engine(), bench.request("a", PROMPT, new=12))
    assert watcher.tokens() == bench.plain_greedy(PROMPT, 12)
    assert watcher.end.end_reason is EndReason.LENGTH


def test_resident_prefix_is_a_gpu_hit_of_whole_blocks_and_leaves_one_token(bench: Any) -> None:
    engine = bench.engine()
    (cold,) = bench.run(engine, bench.request("cold", PROMPT))
    (warm,) = bench.run(engine, bench.request("warm", PROMPT))
    assert cold.end.usage.hit_tokens_by_tier == {}
    assert warm.end.usage.hit_tokens_by_tier == {Tier.GPU: 32}
    assert warm.end.usage.miss_tokens == 8
    assert warm.end.usage.miss_reason is MissReason.NONE
    assert warm.tokens() == cold.tokens()


def test_what_it_was_the_first_to_keep_is_told_once(bench: Any, memory_cache: Any) -> None:
    def written(engine: Any, name: str, tokens: list[int], **more: Any) -> int:
        (watcher,) = bench.run(engine, bench.request(name, tokens, **more))
        count: int = watcher.end.usage.written_tokens
        return count

    engine = bench.engine(memory_cache)
    assert written(engine, "read only", PROMPT, cache_mode=CacheMode.READ_ONLY) == 0
    # 40 + 17 tokens, the last one's KV was never computed: seven whole blocks.
    assert written(engine, "cold", PROMPT, new=17) == 56
    assert written(engine, "warm", PROMPT, new=17) == 0
    assert written(engine, "longer", [*PROMPT[:16], 9, *PROMPT[16:]]) == 24
    assert written(engine, "no store", PROMPT[1:], cache_mode=CacheMode.BYPASS) == 0
    # What the cache service brings was somebody else's to keep.
    assert written(bench.engine(memory_cache), "elsewhere", PROMPT) == 8


def test_generated_tokens_extend_the_chain_for_the_next_turn(bench: Any) -> None:
    engine = bench.engine()
    (first,) = bench.run(engine, bench.request("one", PROMPT, new=17))
    second_prompt = [*PROMPT, *first.tokens(), 9, 9]
    (second,) = bench.run(engine, bench.request("two", second_prompt))
    # 40 + 17 tokens, the last one's KV was never computed: seven full blocks.
    assert second.end.usage.hit_tokens_by_tier == {Tier.GPU: 56}
    assert second.tokens() == bench.plain_greedy(second_prompt, 4)


def test_blocks_come_back_from_the_cache_service_as_bytes(bench: Any, memory_cache: Any) -> None:
    (cold,) = bench.run(bench.engine(memory_cache), bench.request("cold", PROMPT, new=10))
    memory_cache.tier = Tier.SSD
    (warm,) = bench.run(bench.engine(memory_cache), bench.request("warm", PROMPT, new=10))
    assert warm.end.usage.hit_tokens_by_tier == {Tier.SSD: 32}
    assert warm.tokens() == cold.tokens()


def test_chain_is_offered_from_its_first_block_after_prefill_and_at_the_end(
    bench: Any, memory_cache: Any
) -> None:
    engine = bench.engine(memory_cache)
    (watcher,) = bench.run(engine, bench.request("a", PROMPT, new=20))
    tokens = [*PROMPT, *watcher.tokens()]
    chain = block_chain(bench.loaded.namespace, PUBLIC_SCOPE, tokens[:-1])
    assert memory_cache.stored_chains == [chain[:5], chain[:7]]


@pytest.mark.parametrize("new", [1, 4])
def test_a_prompt_is_offered_when_its_first_token_is_out(
    bench: Any, memory_cache: Any, watcher: Any, monkeypatch: pytest.MonkeyPatch, new: int
) -> None:
    seen = watcher()
    tokens_out: list[int] = []
    store = memory_cache.store

    def noted(*arguments: Any) -> Any:
        tokens_out.append(len(seen.tokens()))
        return store(*arguments)

    monkeypatch.setattr(memory_cache, "store", noted)
    engine = bench.engine(memory_cache)
    engine.submit(bench.request("a", PROMPT, new=new), seen)
    bench.finish(engine)
    assert tokens_out == [1]
    assert len(memory_cache.stored_chains[0]) == 5


def test_gap_between_resident_and_stored_blocks_is_restored_behind_the_resident_ones(
    bench: Any, memory_cache: Any
) -> None:
    bench.run(bench.engine(memory_cache), bench.request("long", PROMPT))
    engine = bench.engine(memory_cache)
    bench.run(engine, bench.request("short", PROMPT[:17]))
    (mixed,) = bench.run(engine, bench.request("mixed", PROMPT))
    assert mixed.end.usage.hit_tokens_by_tier == {Tier.GPU: 16, Tier.HOST: 16}


def test_read_only_reuses_and_leaves_nothing(bench: Any, memory_cache: Any) -> None:
    engine = bench.engine(memory_cache)
    bench.run(engine, bench.request("seed", PROMPT[:17]))
    stored = dict(memory_cache.blocks)
    kept = engine.stats().cached_page_count
    read_only = bench.request("ro", PROMPT, new=20, cache_mode=CacheMode.READ_ONLY)
    (watcher,) = bench.run(engine, read_only)
    assert watcher.end.usage.hit_tokens == 16
    assert memory_cache.blocks == stored
    assert engine.stats().cached_page_count == kept


def test_bypass_uses_no_resident_page_and_leaves_none(bench: Any, memory_cache: Any) -> None:
    engine = bench.engine(memory_cache)
    (seed,) = bench.run(engine, bench.request("seed", PROMPT))
    stored, kept = dict(memory_cache.blocks), engine.stats().cached_page_count
    (watcher,) = bench.run(engine, bench.request("by", PROMPT, cache_mode=CacheMode.BYPASS))
    assert watcher.end.usage.hit_tokens == 0
    assert watcher.end.usage.miss_reason is MissReason.NO_STORE
    assert watcher.tokens() == seed.tokens()
    assert (memory_cache.blocks, engine.stats().cached_page_count) == (stored, kept)


def test_other_scope_hits_only_the_public_part(bench: Any) -> None:
    engine = bench.engine()
    mine, theirs = ScopeSalt(b"m" * 32), ScopeSalt(b"t" * 32)
    bench.run(engine, bench.request("mine", PROMPT, scope=ChainScope((PUBLIC_SALT, mine), (2,))))
    (other,) = bench.run(
        engine, bench.request("theirs", PROMPT, scope=ChainScope((PUBLIC_SALT, theirs), (2,)))
    )
    (private,) = bench.run(engine, bench.request("private", PROMPT, scope=ChainScope((theirs,))))
    assert other.end.usage.hit_tokens == 16
    assert private.end.usage.hit_tokens == 0


def test_equal_prompts_submitted_together_are_computed_once(bench: Any) -> None:
    engine = bench.engine()
    watchers = bench.run(engine, *(bench.request(f"r{n}", PROMPT, new=3) for n in range(4)))
    assert [w.end.usage.hit_tokens for w in watchers] == [0, 32, 32, 32]
    assert engine.stats().prefill_tokens_total == 40 + 3 * 8
    assert len({tuple(w.tokens()) for w in watchers}) == 1


@pytest.mark.parametrize("length", [37, 40])
def test_parallel_samples_share_the_prompt_and_differ_by_seed(bench: Any, length: int) -> None:

    engine = bench.engine()
    sampling = Sampling(temperature=1.5, seed=7)
    together = bench.request("n", PROMPT[:length], new=12, sample_count=3, sampling=sampling)
    (watcher,) = bench.run(engine, together)
    assert engine.stats().prefill_tokens_total == length
    assert watcher.end.usage.prompt_tokens == length
    assert watcher.end.usage.completion_tokens == 36
    for index in range(3):
        alone = Sampling(temperature=1.5, seed=7 + index)
        (single,) = bench.run(
            bench.engine(), bench.request("s", PROMPT[:length], new=12, sampling=alone)
        )
        assert watcher.tokens(index) == single.tokens()
    assert len({tuple(watcher.tokens(n)) for n in range(3)}) == 3


def test_prompt_shorter_than_a_block_says_so(bench: Any) -> None:
    (watcher,) = bench.run(bench.engine(), bench.request("a", PROMPT[:8]))
    assert watcher.end.usage.miss_reason is MissReason.TOO_SHORT
