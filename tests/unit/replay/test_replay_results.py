"""Small traces whose results are worked out by hand."""

import dataclasses

import pytest

from cache_service.replay.belady import optimal_hits
from cache_service.replay.cache import WriteWhen
from cache_service.replay.options import Admission, Amount, ReplayOptions
from cache_service.replay.run import OptionsError, replay
from cache_service.replay.trace import NO_BLOCK, Request, Trace

TOKENS = 10


def trace_of(*paths: list[int], tail_tokens: int = 0) -> Trace:
    """Block 10 * n + k is the k-th of the n-th document."""
    numbers: dict[int, int] = {}
    parents = []
    requests = []
    for path in paths:
        blocks = []
        for each in path:
            if each not in numbers:
                numbers[each] = len(parents)
                parents.append(blocks[-1] if blocks else NO_BLOCK)
            blocks.append(numbers[each])
        tokens = TOKENS * len(path) + tail_tokens
        requests.append(Request(0.0, tokens, blocks, len(path) + bool(tail_tokens)))
    return Trace("by hand", TOKENS, requests, parents)


ONE_TIER = ReplayOptions(host=Amount(blocks=4))
TWO_TIERS = ReplayOptions(host=Amount(blocks=2), ssd=Amount(blocks=4), block_bytes=1_000)


def test_a_hit_ends_at_the_first_absent_block() -> None:
    #  10 11 12 in, room for one more: 20; 21 takes the place of 12; 10 11 are hits then.
    trace = trace_of([10, 11, 12], [20, 21], [10, 11, 12], tail_tokens=5)
    result = replay(trace, ONE_TIER)
    assert (result.hit_blocks, result.accesses) == (2, 11)
    assert (result.host_evictions, result.stranded_blocks) == (2, 0)
    assert result.hit_tokens == 20
    assert result.input_tokens == 95
    assert result.token_hit_rate == 0.2105
    assert result.opt_hit_blocks == 3
    assert result.ssd_block_writes == 0


def test_greedy_dual_keeps_what_was_used_again_where_lru_does_not() -> None:
    trace = trace_of([10, 11], [10, 11], [20, 21], [30, 31], [10, 11])
    assert replay(trace, ONE_TIER).hit_blocks == 4
    lru = dataclasses.replace(ONE_TIER, policy="lru")
    assert replay(trace, lru).hit_blocks == 2
    assert optimal_hits(trace, 4) == 4
    assert optimal_hits(trace, 1) == 2


def test_what_memory_has_no_room_for_comes_back_from_the_ssd() -> None:
    trace = trace_of([10, 11], [20, 21], [10, 11])
    result = replay(trace, TWO_TIERS)
    # 10 and 11 are written when 20 and 21 push them out, these when 10 and 11 come back.
    assert (result.hit_blocks, result.host_hit_blocks) == (2, 0)
    assert (result.ssd_block_writes, result.ssd_bytes_written) == (4, 4_000)
    assert (result.host_evictions, result.ssd_evictions) == (4, 0)


def test_written_when_committed_everything_is_on_the_ssd_at_once() -> None:
    trace = trace_of([10, 11], [10, 11])
    committed = dataclasses.replace(TWO_TIERS, write_when=WriteWhen.COMMITTED)
    assert replay(trace, committed).ssd_block_writes == 2
    assert replay(trace, TWO_TIERS).ssd_block_writes == 0


def test_a_leaf_that_leaves_takes_what_is_before_it_to_the_ssd() -> None:
    trace = trace_of([10, 11], [20])
    result = replay(trace, TWO_TIERS)
    assert (result.host_evictions, result.ssd_block_writes) == (1, 2)


def test_refused_blocks_are_misses_and_are_admitted_when_they_return() -> None:
    paths = [[10, 11], [20, 21], [10, 11], [20, 21], [10, 11]]
    options = dataclasses.replace(TWO_TIERS, admission=Admission(first_new_max=1))
    result = replay(trace_of(*paths), options)
    # 11 and 21 are refused at first, and written when they leave for the second time.
    assert result.hit_blocks == 1 + 1 + 2
    assert result.ssd_block_writes == 4
    assert result.refused is not None
    assert (result.refused.blocks, result.refused.lost_hits) == (2, 2)


def test_a_budget_of_nothing_writes_nothing_and_says_what_it_cost() -> None:
    trace = trace_of([10, 11], [20, 21], [10, 11])
    result = replay(trace, dataclasses.replace(TWO_TIERS, write_budget_bytes=1))
    assert (result.hit_blocks, result.ssd_block_writes) == (0, 0)
    assert result.over_budget is not None
    assert (result.over_budget.blocks, result.over_budget.lost_hits) == (4, 2)


def test_segments_write_blocks_that_were_hit_again() -> None:
    options = ReplayOptions(host=Amount(blocks=1), ssd=Amount(blocks=6), segment_blocks=2)
    others = [[each] for each in (30, 40, 50, 60, 70, 80)]
    result = replay(trace_of([10], [20], [10], *others, [10]), options)
    assert result.hit_blocks == 2
    assert result.ssd_relogged_blocks >= 1
    assert result.ssd_evictions > 0
    plain = dataclasses.replace(options, segment_blocks=None)
    assert replay(trace_of([10], [20], [10], *others, [10]), plain).ssd_relogged_blocks == 0


def test_too_few_segments_are_refused() -> None:
    options = ReplayOptions(host=Amount(blocks=1), ssd=Amount(blocks=5), segment_blocks=2)
    with pytest.raises(OptionsError, match="fewer than 3 segments of 2"):
        replay(trace_of([10]), options)


def test_a_share_is_of_the_unique_blocks_and_never_nothing() -> None:
    assert Amount(share=0.1).of(32_468) == 3_246
    assert Amount(share=0.1).of(30) == 3
    assert Amount(share=0.1).of(5) == 1
    assert Amount(blocks=7).of(5) == 7
