"""Which worker takes a request: the one whose first token is predicted soonest. Pure.

    predicted = work that is before it + blocks to load, by tier + tokens to compute

Work that is before it are the prompt tokens of this gateway's requests that have no first token
yet. It is what keeps a hot prefix from drawing everything to one worker: when its queue is longer
than computing the prefix anew elsewhere, another one gets it, and has it from then on. A session's
last worker is preferred by a little, because what is told of caches is a moment old.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

__all__ = ["Candidate", "Prompt", "Rates", "choose", "predicted_seconds"]

STICKY_SHARE = 0.9
"""Of its prediction, for the worker that a session was at last."""

RUNNING_TOKENS = 32
"""What a request that has its first token already takes of its worker's next steps, in tokens."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second, as lately measured (`worker_rates.py`); the defaults only have to be in
    proportion."""

    prefill: float = 2_000.0
    host: float = 60_000.0
    ssd: float = 15_000.0


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: int = 0
    block_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker, as a request sees it."""

    worker: str
    """Its address."""
    running_count: int
    """Requests of this gateway that it has."""
    queued_tokens: int = 0
    """Prompt tokens of those without a first token that it has to compute."""
    page_blocks: int = 0
    """Of the prompt's leading blocks, those that its own pages should have."""
    host_blocks: int = 0
    """Those that its cache service has in host memory, and next on the SSD."""
    ssd_blocks: int = 0
    sticky: bool = False
    sent_at: float = 0.0
    """When this gateway sent it something at last, by any one clock."""
    rates: Rates = field(default_factory=Rates)

    def miss_tokens(self, prompt: Prompt) -> int:
        """At least one is always computed."""
        hits = (self.page_blocks + self.host_blocks + self.ssd_blocks) * prompt.block_tokens
        return max(1, prompt.tokens - hits)


def predicted_seconds(candidate: Candidate, prompt: Prompt) -> float:
    """From now to the first token."""
    rates, block = candidate.rates, prompt.block_tokens
    waiting = candidate.queued_tokens + RUNNING_TOKENS * candidate.running_count
    computing = (waiting + candidate.miss_tokens(prompt)) / rates.prefill
    loading = candidate.host_blocks * block / rates.host + candidate.ssd_blocks * block / rates.ssd
    return (computing + loading) * (STICKY_SHARE if candidate.sticky else 1.0)


def choose(
    candidates: Sequence[Candidate], prompt: Prompt, tried: Collection[str] = ()
) -> Candidate | None:
    """The soonest that was not tried yet, of equals the one with the fewest requests, of these the
    one that was sent something the longest ago; None: there is none left."""
    left = [each for each in candidates if each.worker not in tried]
    return min(
        left,
        key=lambda each: (predicted_seconds(each, prompt), each.running_count, each.sent_at),
        default=None,
    )
