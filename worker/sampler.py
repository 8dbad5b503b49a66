"""The next token from logits. Pure but for the generator it draws from; the engine's thread."""

import torch

from worker.requests import Sampling

__all__ = ["draw_token", "sample_generator"]


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
    """Draws from `logits` `[vocabulary]`, float32. Requires a generator unless greedy."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    assert generator is not None
    scores = logits.cpu() / sampling.temperature
    ordered, tokens = scores.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered, tokens = ordered[: sampling.top_k], tokens[: sampling.top_k]
    chances = torch.softmax(ordered, -1)
    if sampling.top_p < 1.0:
        # A token stays while those before it have not reached top_p: the first always stays.
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= sampling.top_p, 0.0)
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])
