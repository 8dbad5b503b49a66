"""The next token from logits. Pure but for the generator it draws from; the engine's thread."""

import torch

from worker.requests import Sampling

__all__ = ["draw_token", "sample_generator"]

TEMPERATURE_MIN = 1e-30
"""Single precision holds nothing much smaller; the likeliest token is drawn long before."""

NOISE_MIN = 1e-38
"""Never 0: a token without a chance stays at 0 and does not become 0 / 0."""


def sample_generator(sampling: Sampling, sample_index: int) -> torch.Generator | None:
    """The generator of one sample; None when greedy."""
    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed + sample_index)
    return generator


def draw_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Draws from `logits` `[vocabulary]`, float32: one exponential number for each token, and the
    token wins whose chance is largest beside its number.

    Requires a largest logit that is finite and, unless greedy, a generator.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    assert generator is not None
    logits = logits.cpu()
    # From the largest down: then the quotient of a small temperature is 0 or far below, never inf.
    scores = (logits - logits.max()) / max(sampling.temperature, TEMPERATURE_MIN)
    ordered, tokens = scores.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered, tokens = ordered[: sampling.top_k], tokens[: sampling.top_k]
    chances = torch.softmax(ordered, -1)
    if sampling.top_p < 1.0:
        # A token stays while those before it have not reached top_p: the first always stays.
        before = chances.cumsum(-1) - chances
        beyond = before >= sampling.top_p
        beyond[0] = False
        chances = chances.masked_fill(beyond, 0.0)
    # Each token has its own noise, by its id: were it by rank, a rounding difference that swaps two
    # neighbours far down would change the draw, and a warm answer would part from the cold one.
    noise = torch.empty_like(logits).exponential_(generator=generator).clamp_min_(NOISE_MIN)
    return int(tokens[(chances / noise[tokens]).argmax()])
