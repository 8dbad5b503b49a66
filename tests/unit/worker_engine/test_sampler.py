"""The sampler's pipeline, beside transformers' own and by its definition."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from worker.logprobs import token_logprob
from worker.sampler import candidates, draw_token, read_rows, sample_generator
from worker.sampling import Sampling

VOCABULARY = 128
EDGE = 1e-5
"""How near to a filter's edge single precision may decide either way."""

Warp = Callable[[torch.Tensor, Sampling], torch.Tensor]


def drawn(
    logits: torch.Tensor,
    sampling: Sampling,
    generator: torch.Generator | None,
    generated: tuple[int, ...] = (),
) -> int:
    (row,) = read_rows(logits[None])
    return draw_token(row, sampling, generator, generated).token_id


class Given(LogitsProcessor):
    """Puts a test's logits in place of the model's, before the filters."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        return self._logits[None].expand_as(scores).clone()


@pytest.fixture(scope="session")
def warp(tiny_checkpoint: Path) -> Warp:
    """What transformers' `generate` makes of logits before it draws: -inf is filtered."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)

    def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        out = model.generate(
            torch.tensor([[5]]),
            attention_mask=torch.ones(1, 1, dtype=torch.long),
            max_new_tokens=1,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p or None,
            logits_processor=LogitsProcessorList([Given(logits)]),
            output_scores=True,
            return_dict_in_generate=True,
        )
        scores: torch.Tensor = out.scores[0][0]
        return scores

    return warped


@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0.2, 3.0),
        top_k=st.sampled_from([0, 1, 3, 20, VOCABULARY, 1000]),
        top_p=st.sampled_from([1.0]) | st.floats(0.05, 0.999),
        min_p=st.sampled_from([0.0]) | st.floats(0.001, 1.0),
    ),
)
@settings(max_examples=150, deadline=None)
def test_the_filters_keep_what_transformers_keeps_with_the_same_chances(
    warp: Warp, seed: int, spread: float, sampling: Sampling
) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    scores = warp(logits, sampling)
    theirs = set(scores.isfinite().nonzero().squeeze(1).tolist())
    tokens, chances = candidates(logits, sampling, ())
    ours = set(tokens.tolist())
    assert ours ^ theirs <= at_an_edge(logits, sampling)
    if ours == theirs:
        expected = torch.softmax(scores, -1)[tokens]
        torch.testing.assert_close(chances / chances.sum(), expected, rtol=1e-4, atol=1e-6)


def at_an_edge(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """Tokens that rounding alone may put on either side of a filter."""
    tokens, chances = candidates(logits, replace(sampling, top_p=1.0, min_p=0.0), ())
    exact, order = chances.double().sort(descending=True)
    near = ((exact.cumsum(-1) - exact) - sampling.top_p).abs() < EDGE
    near |= (exact / exact[0] - sampling.min_p).abs() < EDGE
    return set(tokens[order[near]].tolist())


def test_a_top_k_keeps_all_that_are_as_likely_as_its_last_as_transformers_does(warp: Warp) -> None:
    logits = torch.full((VOCABULARY,), -5.0)
    logits[[3, 9, 40, 41]] = torch.tensor([4.0, 2.0, 2.0, 1.0])
    sampling = Sampling(temperature=1.0, top_k=2)
    tokens, _ = candidates(logits, sampling, ())
    assert tokens.tolist() == [3, 9, 40]
    assert warp(logits, sampling).isfinite().nonzero().squeeze(1).tolist() == [3, 9, 40]


@given(
    seed=st.integers(0, 2**32),
    generated=st.lists(st.integers(0, 40), max_size=60),
    presence=st.floats(-2.0, 2.0),
    frequency=st.floats(-2.0, 2.0),
)
@settings(max_examples=100, deadline=None)
def test_penalties_are_taken_off_by_whether_and_how_often_a_token_was_generated(
    seed: int, generated: list[int], presence: float, frequency: float
) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    kept = logits.clone()
    sampling = Sampling(temperature=1.0, presence_penalty=presence, frequency_penalty=frequency)
    tokens, chances = candidates(logits, sampling, generated)
    counts = Counter(generated)
    expected = [
        float(logit) - presence * (counts[token] > 0) - frequency * counts[token]
        for token, logit in enumerate(logits.double())
    ]
    assert tokens.tolist() == list(range(VOCABULARY))
    torch.testing.assert_close(
        chances.double(), torch.tensor(expected).double().softmax(-1), rtol=1e-3, atol=1e-7
    )
    assert torch.equal(logits, kept), "the row belongs to all samples of a prompt"
    greedy = drawn(logits, replace(sampling, temperature=0.0), None, tuple(generated))
    assert expected[greedy] == pytest.approx(max(expected), abs=1e-4)


def test_a_token_that_a_penalty_cannot_save_stays_without_a_chance() -> None:
    logits = torch.tensor([-math.inf, 1.0, 1.0])
    sampling = Sampling(temperature=1.0, presence_penalty=-2.0, frequency_penalty=-2.0, seed=1)
    generator = sample_generator(sampling, 0)
    assert {drawn(logits, sampling, generator, (0, 0)) for _ in range(100)} == {1, 2}


def test_rows_of_a_step_say_each_their_own_largest_and_first_likeliest() -> None:
    rows = read_rows(torch.tensor([[0.0, 7.0, 7.0], [math.nan, 1.0, 2.0], [-1.0, -3.0, -2.0]]))
    assert [row.likeliest for row in rows[::2]] == [1, 0]
    assert [row.largest for row in rows[::2]] == [7.0, -1.0]
    assert math.isnan(rows[1].largest)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 20), token=st.integers(0, VOCABULARY - 1))
@settings(max_examples=50, deadline=None)
def test_logprobs_are_of_the_row_itself_likeliest_first(seed: int, count: int, token: int) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 5
    told = token_logprob(logits, token, count)
    exact = logits.double() - logits.double().logsumexp(-1)
    assert told.logprob == pytest.approx(float(exact[token]), abs=1e-4)
    assert [value for _, value in told.top] == sorted((v for _, v in told.top), reverse=True)
    assert {t for t, _ in told.top} == set(exact.topk(count).indices.tolist())
    for other, value in told.top:
        assert value == pytest.approx(float(exact[other]), abs=1e-4)


def test_logprobs_leave_out_tokens_without_a_chance_and_end_with_the_vocabulary() -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0])
    told = token_logprob(logits, 0, 20)
    assert sorted(token for token, _ in told.top) == [0, 2]
    assert told.logprob == pytest.approx(math.log(0.5))
    assert token_logprob(logits, 2, 0).top == ()


def test_logprobs_are_told_before_penalties_temperature_and_filters() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    sampling = Sampling(
        temperature=0.5, top_k=1, presence_penalty=2.0, frequency_penalty=2.0, seed=1, logprobs=3
    )
    (row,) = read_rows(logits[None])
    told = draw_token(row, sampling, sample_generator(sampling, 0), (0, 0, 0))
    assert told.token_id == 1
    assert told.logprob == token_logprob(logits, 1, 3)


def test_the_filters_leave_only_likely_tokens() -> None:
    logits = torch.tensor([0.0, 5.0, 4.0, 3.0])
    for sampling, allowed in (
        (Sampling(temperature=1.0, top_k=1, seed=1), {1}),
        (Sampling(temperature=1.0, top_k=2, seed=1), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.5, seed=1), {1}),
        (Sampling(temperature=1.0, top_p=0.9, seed=1), {1, 2}),
        (Sampling(temperature=1.0, min_p=0.3, seed=1), {1, 2}),
        (Sampling(temperature=1.0, min_p=1.0, seed=1), {1}),
        (Sampling(temperature=4.0, min_p=0.5, seed=1), {1, 2, 3}),
        (Sampling(temperature=9.0, seed=1), {0, 1, 2, 3}),
    ):
        generator = sample_generator(sampling, 0)
        seen = {drawn(logits, sampling, generator) for _ in range(300)}
        assert seen == allowed


@pytest.mark.parametrize("tiny", [1e-7, 1e-30, 1e-40, 5e-324])
def test_a_temperature_or_top_p_next_to_nothing_draws_the_likeliest(tiny: float) -> None:
    """What single precision cannot hold would otherwise become 0 / 0, or leave no token at all."""
    logits = torch.tensor([-3.0e38, -float("inf"), 7.0, 7.5])
    for sampling in (
        Sampling(temperature=tiny, seed=1),
        Sampling(temperature=1.0, top_p=tiny, seed=1),
        Sampling(temperature=tiny, min_p=tiny, seed=1),
        Sampling(temperature=tiny, top_p=tiny, top_k=2**31 - 1, seed=1),
    ):
        assert drawn(logits, sampling, sample_generator(sampling, 0)) == 3


def test_seed_plus_index_decides_what_a_sample_draws() -> None:
    logits = torch.zeros(50)

    def draws(seed: int, index: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        generator = sample_generator(sampling, index)
        return [drawn(logits, sampling, generator) for _ in range(8)]

    assert draws(3, 1) == draws(4, 0)
    assert draws(3, 0) != draws(3, 1)
    assert draws(2**63 - 1, 15) == draws(2**63 - 1, 15)


def test_a_rounding_difference_that_swaps_neighbours_changes_no_draw() -> None:
    """A warm prefix and a cold one may differ in the last bit; the samples must not."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(8_000, generator=generator)
    noisy = logits + torch.randn(8_000, generator=generator) * 1e-6
    assert (logits.argsort() != noisy.argsort()).any()
    sampling = Sampling(temperature=1.0, seed=7)
    one, other = sample_generator(sampling, 0), sample_generator(sampling, 0)
    for _ in range(300):
        assert drawn(logits, sampling, one) == drawn(noisy, sampling, other)


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    sampling = Sampling(temperature=1.0, seed=3)
    generator = sample_generator(sampling, 0)
    seen = [drawn(logits, sampling, generator) for _ in range(5_000)]
    for token, chance in enumerate([0.6, 0.3, 0.1]):
        assert seen.count(token) / 5_000 == pytest.approx(chance, abs=0.03)
