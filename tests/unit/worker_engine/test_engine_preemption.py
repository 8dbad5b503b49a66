"""Requests that are put back: nothing is lost but time, nothing is counted twice."""

from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from worker.requests import CacheMode, EndReason, RequestId
from worker.sampling import Sampling

ONE = list(range(3, 43))
OTHER = list(range(60, 100))


def run_beside(bench: Any, engine: Any, *requests: Any) -> list[Any]:
    """All at once, in a pool that cannot hold them to their ends."""
    watchers = bench.run(engine, *requests)
    assert engine.stats().preemptions_total > 0
    return watchers


def step_until_preempted(engine: Any) -> None:
    for _ in range(200):
        engine.step()
        engine.check_integrity()
        if engine.stats().preemptions_total:
            return
    raise AssertionError("nobody was put back")


@pytest.mark.parametrize("with_cache", [False, True])
def test_greedy_tokens_are_the_plain_models_after_a_preemption(
    bench: Any, memory_cache: Any, with_cache: bool
) -> None:
    engine = bench.engine(memory_cache if with_cache else None, page_count=9)
    one, other = run_beside(
        bench, engine, bench.request("a", ONE[:20], new=45), bench.request("b", OTHER[:20], new=45)
    )
    assert one.tokens() == bench.plain_greedy(ONE[:20], 45)
    assert other.tokens() == bench.plain_greedy(OTHER[:20], 45)
    assert {one.end.end_reason, other.end.end_reason} == {EndReason.LENGTH}


@pytest.mark.parametrize("mode", [CacheMode.READ_ONLY, CacheMode.BYPASS])
def test_who_keeps_nothing_is_computed_again_from_the_start(bench: Any, mode: CacheMode) -> None:
    engine = bench.engine(page_count=9)
    watchers = run_beside(
        bench,
        engine,
        bench.request("a", ONE[:20], new=45, cache_mode=mode),
        bench.request("b", OTHER[:20], new=45, cache_mode=mode),
    )
    for watcher, prompt in zip(watchers, (ONE, OTHER), strict=True):
        assert watcher.tokens() == bench.plain_greedy(prompt[:20], 45)
        assert watcher.end.usage.miss_tokens == 20
    assert engine.stats().cached_page_count == 0


@pytest.mark.parametrize("length", [16, 21])
def test_samples_go_on_where_they_were_drawn(bench: Any, length: int) -> None:
    """Each with its own generator and its own tokens: as if it had never stopped."""
    sampling = Sampling(temperature=1.5, seed=11)
    alone = bench.request("n", OTHER[:length], new=20, sample_count=3, sampling=sampling)
    (expected,) = bench.run(bench.engine(), alone)
    engine = bench.engine(page_count=12)
    first, samples = run_beside(bench, engine, bench.request("a", ONE[:20], new=60), alone)
    assert first.tokens() == bench.plain_greedy(ONE[:20], 60)
    for index in range(3):
        assert samples.tokens(index) == expected.tokens(index)
    assert samples.end.usage.completion_tokens == 60
    assert samples.end.usage.prompt_tokens == length


def test_a_block_that_is_computed_again_is_never_a_hit(bench: Any, memory_cache: Any) -> None:
    engine = bench.engine(memory_cache, page_count=9)
    one, other = run_beside(
        bench, engine, bench.request("a", ONE[:20], new=45), bench.request("b", OTHER[:23], new=42)
    )
    for watcher, prompt_tokens in ((one, 20), (other, 23)):
        usage = watcher.end.usage
        assert usage.hit_tokens_by_tier == {}
        assert usage.prompt_tokens == usage.miss_tokens == prompt_tokens
        assert usage.miss_reason is MissReason.NEVER_STORED
        # 65 tokens, the last one's KV was never computed: eight whole blocks, each once.
        assert usage.written_tokens == 64
    stats = engine.stats()
    assert stats.recomputed_tokens_total > 0
    computed = stats.prefill_tokens_total + stats.decode_tokens_total
    assert computed - stats.recomputed_tokens_total == 2 * 64


def test_a_hit_stays_one_with_its_tier_when_it_is_found_elsewhere_later(
    bench: Any, memory_cache: Any
) -> None:
    bench.run(bench.engine(memory_cache), bench.request("seed", OTHER[:20], new=1))
    engine = bench.engine(memory_cache, page_count=9)
    _, other = run_beside(
        bench, engine, bench.request("a", ONE[:20], new=45), bench.request("b", OTHER[:20], new=45)
    )
    assert other.tokens() == bench.plain_greedy(OTHER[:20], 45)
    assert other.end.usage.hit_tokens_by_tier == {Tier.HOST: 16}
    assert other.end.usage.miss_tokens == 4


def test_whole_blocks_are_kept_and_only_the_tail_is_computed_again(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine(page_count=9)
    first, second = watcher(), watcher()
    engine.submit(bench.request("a", ONE[:8], new=52), first)
    engine.submit(bench.request("b", OTHER[:30], new=30), second)
    step_until_preempted(engine)
    # It is taken up again as soon as the other ends: its blocks are there still.
    engine.cancel(RequestId("a"))
    bench.finish(engine)
    assert second.tokens() == bench.plain_greedy(OTHER[:30], 30)
    assert engine.stats().recomputed_tokens_total < 8


def test_what_is_put_back_is_offered_to_the_cache_service(
    bench: Any, watcher: Any, memory_cache: Any
) -> None:
    engine = bench.engine(memory_cache, page_count=9)
    engine.submit(bench.request("a", ONE[:8], new=52), watcher())
    engine.submit(bench.request("b", OTHER[:24], new=40), watcher())
    step_until_preempted(engine)
    assert max(map(len, memory_cache.stored_chains)) > 3
    bench.finish(engine)


def test_a_sample_that_is_stopped_while_its_request_waits_ends_there(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine(page_count=8)
    first, second = watcher(), watcher()
    engine.submit(bench.request("a", ONE[:8], new=52), first)
    engine.submit(bench.request("b", OTHER[:16], new=20, sample_count=2), second)
    step_until_preempted(engine)
    assert engine.stats().waiting_count == 1
    engine.stop_sample(RequestId("b"), 0)
    engine.step()
    assert second.finishes == {0: "stop"}
    had = second.tokens(0)
    bench.finish(engine)
    assert second.finishes == {0: "stop", 1: "length"}
    assert second.tokens(0) == had == bench.plain_greedy(OTHER[:16], len(had))
    assert second.tokens(1) == bench.plain_greedy(OTHER[:16], 20)


def test_a_cancelled_request_that_was_put_back_counts_what_it_had(bench: Any, watcher: Any) -> None:
    engine = bench.engine(page_count=9)
    second = watcher()
    engine.submit(bench.request("a", ONE[:8], new=52), watcher())
    engine.submit(bench.request("b", OTHER[:24], new=40), second)
    step_until_preempted(engine)
    engine.cancel(RequestId("b"))
    engine.step()
    usage = second.end.usage
    assert second.end.end_reason is EndReason.CANCELLED
    assert (usage.prompt_tokens, usage.miss_tokens, usage.hit_tokens) == (24, 24, 0)
    assert usage.completion_tokens == len(second.tokens()) > 0
    bench.finish(engine)


def test_nobody_is_put_back_more_than_three_times(bench: Any) -> None:
    engine = bench.engine(page_count=10, step_tokens=32)
    prompts = [[40 + n, *ONE[:10]] for n in range(6)]
    requests = [bench.request(f"r{n}", prompt, new=60) for n, prompt in enumerate(prompts)]
    watchers = run_beside(bench, engine, *requests)
    for watcher, prompt in zip(watchers, prompts, strict=True):
        assert watcher.tokens() == bench.plain_greedy(prompt, 60)
    assert engine.stats().preemptions_total <= 3 * len(prompts)


def test_eviction_in_the_middle_of_a_request_changes_no_token(bench: Any, watcher: Any) -> None:
    """Its own blocks leave while it waits; what it reused leaves others' trees."""
    engine = bench.engine(page_count=9, load_threads=0)
    bench.run(engine, bench.request("seed", OTHER[:24], new=1))
    first, second = watcher(), watcher()
    engine.submit(bench.request("b", OTHER[:24], new=20), second)
    for _ in range(6):
        engine.step()
    engine.submit(bench.request("a", ONE[:16], new=50, priority=1), first)
    bench.finish(engine)
    assert engine.stats().evicted_pages_total > 0
    assert first.tokens() == bench.plain_greedy(ONE[:16], 50)
    assert second.tokens() == bench.plain_greedy(OTHER[:24], 20)
    assert second.end.usage.hit_tokens_by_tier == {Tier.GPU: 16}
