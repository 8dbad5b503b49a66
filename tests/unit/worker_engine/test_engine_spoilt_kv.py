"""KV that came out as no numbers stays nowhere: not in the pages, not in the cache service."""

from typing import Any

import pytest

from kvtier.blocks import Tier
from worker.requests import EndReason

PROMPT = list(range(3, 43))
STEPS = 3  # of 16 tokens


def spoil_until_ended(bench: Any, engine: Any, seen: Any) -> None:
    """The model's values are NaN from here until the request has ended."""
    weight = bench.loaded.model.model.layers[0].self_attn.v_proj.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = float("nan")
    while not seen.ends:
        engine.step()
    weight.data.copy_(kept)
    engine.check_integrity()


@pytest.mark.parametrize("spoilt_step", range(STEPS))
def test_a_step_that_computes_no_numbers_leaves_nothing_to_reuse(
    bench: Any, watcher: Any, memory_cache: Any, spoilt_step: int
) -> None:
    engine = bench.engine(memory_cache)
    seen = watcher()
    engine.submit(bench.request("a", PROMPT), seen)
    while engine.stats().prefill_tokens_total < spoilt_step * 16:
        engine.step()
    spoil_until_ended(bench, engine, seen)
    assert seen.end.end_reason is EndReason.ERROR
    good = spoilt_step * 2  # blocks
    assert len(memory_cache.blocks) == 0
    (again,) = bench.run(engine, bench.request("b", PROMPT))
    assert again.tokens() == bench.plain_greedy(PROMPT, 4)
    assert again.end.usage.hit_tokens_by_tier == ({Tier.GPU: good * 8} if good else {})


def test_a_request_that_reused_blocks_keeps_them_when_it_fails(
    bench: Any, watcher: Any, memory_cache: Any
) -> None:
    """What others computed well is not suspect because this one failed behind it."""
    engine = bench.engine(memory_cache)
    bench.run(engine, bench.request("a", PROMPT[:33]))
    stored = len(memory_cache.blocks)
    seen = watcher()
    engine.submit(bench.request("b", PROMPT), seen)
    spoil_until_ended(bench, engine, seen)
    assert seen.end.end_reason is EndReason.ERROR
    assert len(memory_cache.blocks) == stored
    (again,) = bench.run(engine, bench.request("c", PROMPT))
    assert again.end.usage.hit_tokens_by_tier == {Tier.GPU: 32}
    assert again.tokens() == bench.plain_greedy(PROMPT, 4)


def test_a_decode_step_that_computes_no_numbers_offers_nothing_of_it(
    bench: Any, watcher: Any, memory_cache: Any
) -> None:
    engine = bench.engine(memory_cache)
    seen = watcher()
    engine.submit(bench.request("a", PROMPT[:15], new=30), seen)
    while len(seen.tokens()) < 1:
        engine.step()
    spoil_until_ended(bench, engine, seen)  # at the token that fills the second block
    assert seen.end.end_reason is EndReason.ERROR
    assert engine.stats().cached_page_count == 1
