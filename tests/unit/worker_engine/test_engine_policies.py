"""The pure parts: sampling."""

import pytest
import torch

from worker.requests import Sampling
from worker.sampler import draw_token, sample_generator


def test_top_k_and_top_p_leave_only_likely_tokens() -> None:
    logits = torch.tensor([0.0, 5.0, 4.0, 3.0])
    for sampling, allowed in (
        (Sampling(temperature=1.0, top_k=1, seed=1), {1}),
        (Sampling(temperature=1.0, top_k=2, seed=1), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.5, seed=1), {1}),
        (Sampling(temperature=1.0, top_p=0.9, seed=1), {1, 2}),
        (Sampling(temperature=9.0, seed=1), {0, 1, 2, 3}),
    ):
        generator = sample_generator(sampling, 0)
        drawn = {draw_token(logits, sampling, generator) for _ in range(300)}
        assert drawn == allowed


@pytest.mark.parametrize("tiny", [1e-7, 1e-30, 1e-40, 5e-324])
def test_a_temperature_or_top_p_next_to_nothing_draws_the_likeliest(tiny: float) -> None:
    """What single precision cannot hold would otherwise become 0 / 0, or leave no token at all."""
    logits = torch.tensor([-3.0e38, -float("inf"), 7.0, 7.5])
    for sampling in (
        Sampling(temperature=tiny, seed=1),
        Sampling(temperature=1.0, top_p=tiny, seed=1),
        Sampling(temperature=tiny, top_p=tiny, top_k=2**31 - 1, seed=1),
    ):
        assert draw_token(logits, sampling, sample_generator(sampling, 0)) == 3


def test_seed_plus_index_decides_what_a_sample_draws() -> None:
    logits = torch.zeros(50)

    def draws(seed: int, index: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        generator = sample_generator(sampling, index)
        return [draw_token(logits, sampling, generator) for _ in range(8)]

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
        assert draw_token(logits, sampling, one) == draw_token(noisy, sampling, other)


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    sampling = Sampling(temperature=1.0, seed=3)
    generator = sample_generator(sampling, 0)
    drawn = [draw_token(logits, sampling, generator) for _ in range(5_000)]
    for token, chance in enumerate([0.6, 0.3, 0.1]):
        assert drawn.count(token) / 5_000 == pytest.approx(chance, abs=0.03)
