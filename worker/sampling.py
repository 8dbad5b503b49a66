"""How a request's tokens are drawn: its words, and which of them go together.

Frozen data and a pure check, any thread. `worker/sampler.py` does what is said here.
"""

import math
from dataclasses import dataclass

from worker.errors import InvalidSamplingError

__all__ = ["LOGPROBS_MAX", "Sampling", "check_sampling"]

TEMPERATURE_MAX = 10.0
PENALTY_MAX = 2.0
"""As everywhere in the field; either sign."""

LOGPROBS_MAX = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn, and what is told of it. Greedy at temperature 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    """The likeliest tokens that together have this chance; in (0, 1]."""
    top_k: int = 0
    """The likeliest tokens, so many; 0 means all."""
    min_p: float = 0.0
    """Tokens at least so likely beside the likeliest one; 0 means all."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the sample has generated."""
    frequency_penalty: float = 0.0
    """Taken off once for each time that the sample has generated it."""
    seed: int | None = None
    """Sample i draws from a generator seeded with seed + i; None: seeded by the system."""
    logprobs: int | None = None
    """None: not told. Else the drawn token's, and those of so many likeliest tokens."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def check_sampling(sampling: Sampling, sample_count: int) -> None:
    """Raises InvalidSamplingError with the field's name, and the one that it does not go with."""
    _check_range("temperature", sampling.temperature, 0.0, TEMPERATURE_MAX)
    if not 0.0 < sampling.top_p <= 1.0:
        raise InvalidSamplingError("top_p must be above 0 and at most 1", field="sampling.top_p")
    if sampling.top_k < 0:
        raise InvalidSamplingError(
            "top_k must be 1 or more, or 0 for all tokens", field="sampling.top_k"
        )
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    _check_range("presence_penalty", sampling.presence_penalty, -PENALTY_MAX, PENALTY_MAX)
    _check_range("frequency_penalty", sampling.frequency_penalty, -PENALTY_MAX, PENALTY_MAX)
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= LOGPROBS_MAX:
        raise InvalidSamplingError(f"logprobs must be 0 to {LOGPROBS_MAX}", field="logprobs")
    if sampling.greedy:
        _check_greedy(sampling, sample_count)


def _check_greedy(sampling: Sampling, sample_count: int) -> None:
    if sample_count > 1:
        raise InvalidSamplingError(
            f"{sample_count} greedy samples would all be the same; set a temperature above 0, or"
            " ask for one",
            field="sample_count",
            conflicts_with="sampling.temperature",
        )
    if sampling.min_p:
        raise InvalidSamplingError(
            "min_p does nothing at temperature 0, which is greedy; set a temperature above 0, or"
            " leave min_p unset",
            field="sampling.min_p",
            conflicts_with="sampling.temperature",
        )


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if math.isnan(value) or not least <= value <= most:
        raise InvalidSamplingError(
            f"{name} must be {least:g} to {most:g}", field=f"sampling.{name}"
        )
