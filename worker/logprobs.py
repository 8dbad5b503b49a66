"""How likely tokens were to the model: what a reply tells beside them. Pure, any thread.

Logprobs are natural logarithms of chances under the model's own distribution: the softmax of its
logits, before penalties, temperature and filters.
"""

from dataclasses import dataclass

import torch

__all__ = ["TokenLogprob", "token_logprob"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Of one drawn token."""

    logprob: float
    """At most 0, finite."""
    top: tuple[tuple[int, float], ...] = ()
    """Token ids and logprobs of the likeliest tokens, likeliest first."""


def token_logprob(logits: torch.Tensor, token_id: int, top_count: int) -> TokenLogprob:
    """Of `token_id`, and of the `top_count` likeliest of `logits` `[vocabulary]`, float32.

    Tokens without a chance are left out. Requires a largest logit that is finite.
    """
    logprobs = torch.log_softmax(logits, -1)
    own = float(logprobs[token_id])
    if top_count == 0:
        return TokenLogprob(own)
    values, tokens = logprobs.topk(min(top_count, len(logprobs)))
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return TokenLogprob(own, tuple((token, value) for token, value in pairs if value > -torch.inf))
