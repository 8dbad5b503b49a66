"""The next token from logits. Pure but for the generator it draws from; the engine's thread.

    logits -> penalties -> temperature -> top-k -> top-p -> min-p -> draw

The order of the filters is that of transformers' `GenerationMixin`. Invariant: what is drawn
depends on the row's logits, its request's `Sampling` and its sample's own tokens and generator, and
on nothing else in the step. Why so: docs/adr/0027-sampling-and-replies.md.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.logprobs import TokenLogprob, token_logprob
from worker.sampling import Sampling

__all__ = ["Drawn", "LogitRow", "candidates", "draw_token", "read_rows", "sample_generator"]

TEMPERATURE_MIN = 1e-30
"""Single precision holds nothing much smaller; the likeliest token is drawn long before."""

NOISE_MIN = 1e-38
"""Never 0: a token without a chance stays at 0 and does not become 0 / 0."""


@dataclass(frozen=True, slots=True)
class LogitRow:
    """What the model says comes next at one place."""

    logits: torch.Tensor
    """`[vocabulary]`, float32, on the model's device."""
    largest: float
    """NaN where any logit is."""
    likeliest: int
    """The first token with the largest logit."""


@dataclass(frozen=True, slots=True)
class Drawn:
    token_id: int
    logprob: TokenLogprob | None
    """None where the request did not ask."""


def sample_generator(sampling: Sampling, sample_index: int) -> torch.Generator | None:
    """The generator of one sample; None when greedy."""
    if sampling.greedy:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed + sample_index)
    return generator


def read_rows(logits: torch.Tensor) -> list[LogitRow]:
    """The rows of `logits` `[rows, vocabulary]`: one pass draws all that are simply greedy."""
    largest, likeliest = logits.max(dim=1)
    # One copy to the host: double precision has every token's number as it is.
    both = torch.stack([largest.double(), likeliest.double()], dim=1).tolist()
    return [LogitRow(row, top, int(token)) for row, (top, token) in zip(logits, both, strict=True)]


def draw_token(
    row: LogitRow,
    sampling: Sampling,
    generator: torch.Generator | None,
    generated: Sequence[int],
) -> Drawn:
    """The token after `generated`, which are the sample's tokens until now.

    Requires a finite `row.largest` and, unless greedy, a generator.
    """
    token = row.likeliest
    if not sampling.greedy:
        assert generator is not None
        token = _draw(row.logits.cpu(), sampling, generator, generated)
    elif sampling.penalises:
        token = int(_penalised(row.logits.cpu(), sampling, generated).argmax())
    if sampling.logprobs is None:
        return Drawn(token, None)
    return Drawn(token, token_logprob(row.logits, token, sampling.logprobs))


def candidates(
    logits: torch.Tensor, sampling: Sampling, generated: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids that may be drawn, `[n]`, and their chances beside each other, `[n]` float32.

    The chances add up to at most 1. `sampling` is not greedy; `logits` are as in `LogitRow`.
    """
    scores = _penalised(logits, sampling, generated)
    # From the largest down: then the quotient of a small temperature is 0 or far below, never inf.
    scores = (scores - scores.max()) / max(sampling.temperature, TEMPERATURE_MIN)
    tokens = torch.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        kept = scores >= scores.topk(sampling.top_k).values[-1]
        tokens, scores = tokens[kept], scores[kept]
    chances = torch.softmax(scores, -1)
    if sampling.top_p < 1.0:
        places = _nucleus(chances, sampling.top_p)
        tokens, chances = tokens[places], chances[places]
    if sampling.min_p > 0.0:
        kept = chances >= sampling.min_p * chances.max()
        tokens, chances = tokens[kept], chances[kept]
    return tokens, chances


def _draw(
    logits: torch.Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    generated: Sequence[int],
) -> int:
    """One exponential number for each token; the token wins whose chance is largest beside its
    number."""
    tokens, chances = candidates(logits, sampling, generated)
    # Each token has its own noise, by its id: were it by rank, a rounding difference that swaps two
    # neighbours far down would change the draw, and a warm answer would part from the cold one.
    noise = torch.empty_like(logits).exponential_(generator=generator).clamp_min_(NOISE_MIN)
    return int(tokens[(chances / noise[tokens]).argmax()])


def _penalised(logits: torch.Tensor, sampling: Sampling, generated: Sequence[int]) -> torch.Tensor:
    if not sampling.penalises or not generated:
        return logits
    counts = Counter(generated)
    penalties = sampling.presence_penalty + sampling.frequency_penalty * torch.tensor(
        list(counts.values()), dtype=logits.dtype
    )
    return logits.index_add(0, torch.tensor(list(counts)), penalties, alpha=-1)


def _nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """Places of the likeliest of `chances` that together reach `top_p`, rising.

    A token stays while those before it have not reached it: the first always stays.
    """
    # Tokens below this have less than 1 - top_p together, so none of them stays: a vocabulary's
    # long tail needs no sorting.
    likely = (chances >= (1.0 - top_p) / len(chances)).nonzero().squeeze(1)
    ordered, order = chances[likely].double().sort(descending=True, stable=True)
    stays = ordered.cumsum(-1) - ordered < top_p
    stays[0] = True
    return likely[order[stays]].sort().values
