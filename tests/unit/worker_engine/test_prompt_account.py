"""Where a prompt's tokens came from: written once, whatever becomes of its pages."""

import pytest

from kvtier.blocks import Tier
from worker.prompt_account import PromptAccount
from worker.requests import SourceRun

GPU, HOST, SSD = Tier.GPU, Tier.HOST, Tier.SSD


def test_each_block_counts_where_it_came_from_and_the_tail_as_computed() -> None:
    account = PromptAccount(37, 8)
    account.reused(0, [GPU])
    account.reused(1, [HOST, SSD])
    assert account.hit_tokens_by_tier == {GPU: 8, HOST: 8, SSD: 8}
    assert account.computed_tokens == 0
    account.computed(24, 32)
    assert account.computed_tokens == 8
    account.computed(32, 37)
    assert account.computed_tokens == 13


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16])
def test_a_prompt_that_is_computed_whole_has_its_length(length: int) -> None:
    account = PromptAccount(length, 8)
    account.computed(0, length)
    assert (account.computed_tokens, account.hit_tokens_by_tier) == (length, {})


def test_what_was_computed_is_no_hit_when_it_is_found_again() -> None:
    account = PromptAccount(32, 8)
    account.computed(0, 16)
    account.reused(0, [GPU, GPU])
    account.reused(2, [HOST])
    assert account.hit_tokens_by_tier == {HOST: 8}
    assert account.computed_tokens == 16


def test_a_hit_keeps_the_tier_it_came_from_first() -> None:
    account = PromptAccount(32, 8)
    account.reused(0, [HOST, GPU])
    account.reused(0, [GPU, SSD])
    assert account.hit_tokens_by_tier == {HOST: 8, GPU: 8}


def test_a_hit_that_is_lost_and_computed_before_the_first_token_was_none() -> None:
    account = PromptAccount(32, 8)
    account.reused(0, [GPU, GPU, GPU])
    assert account.computed(8, 32)
    assert not account.computed(8, 32)
    assert account.hit_tokens_by_tier == {GPU: 8}
    assert account.computed_tokens == 24


def test_after_the_first_token_nothing_changes() -> None:
    account = PromptAccount(30, 8)
    account.reused(0, [GPU, HOST])
    account.computed(16, 30)
    account.close()
    assert not account.computed(0, 30)
    account.reused(0, [SSD, SSD, SSD])
    assert account.hit_tokens_by_tier == {GPU: 8, HOST: 8}
    assert account.computed_tokens == 14


def test_runs_are_the_places_in_their_order() -> None:
    account = PromptAccount(45, 8)
    account.reused(0, [GPU, GPU, HOST])
    account.computed(24, 45)
    assert account.runs == (SourceRun(GPU, 2), SourceRun(HOST, 1), SourceRun(None, 3))


def test_runs_end_where_nothing_is_known_yet() -> None:
    account = PromptAccount(40, 8)
    assert account.runs == ()
    account.reused(0, [SSD])
    account.computed(8, 24)
    assert account.runs == (SourceRun(SSD, 1), SourceRun(None, 2))
