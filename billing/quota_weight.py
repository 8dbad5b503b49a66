"""What a request weighs in a limit on tokens: hits may weigh less than misses.

Invariant: a weight follows from the tokens that were counted and the card's `quota` alone, never
from a price: a promotion widens no limit that protects a machine. Exact. Pure, any thread.
"""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

from billing.money import EXACT, ONE, ZERO
from billing.price_card import CACHE_WRITE, HIT_TIERS, RateCard
from billing.usage import TokenCounts

__all__ = ["quota_weight", "weight_bound", "weight_micro"]

_DEFAULTS = {"hit": ONE, "miss": ONE, "output": ONE, CACHE_WRITE: ZERO, "request": ZERO}
"""Of meters that a card does not name: tokens weigh one each, what is beside them nothing."""


def quota_weight(tokens: TokenCounts, card: RateCard | None, request_count: int = 1) -> Decimal:
    """The weight of a request, or of the sum of `request_count` of them. A tier that is not named
    weighs as "hit" does; without a card each token weighs one.
    """
    weights = _weights(card)
    counts = {
        **dict(
            zip(
                HIT_TIERS,
                (tokens.hit_gpu, tokens.hit_host, tokens.hit_ssd, tokens.hit_shared),
                strict=True,
            )
        ),
        "miss": tokens.miss,
        "output": tokens.output,
        CACHE_WRITE: tokens.cache_write,
        "request": request_count,
    }
    total = ZERO
    for meter, count in counts.items():
        weight = weights.get(meter, weights["hit"])
        total = EXACT.add(total, EXACT.multiply(Decimal(count), weight))
    return total


def weight_bound(prompt_tokens: int, completion_tokens: int, card: RateCard | None) -> Decimal:
    """The most that a request can weigh, whatever of it is a hit and comes."""
    weights = _weights(card)
    of_prompt = max(weights["miss"], *(weights.get(tier, weights["hit"]) for tier in HIT_TIERS))
    written = weights[CACHE_WRITE]
    total = EXACT.multiply(Decimal(prompt_tokens), EXACT.add(of_prompt, written))
    output = EXACT.multiply(Decimal(completion_tokens), EXACT.add(weights["output"], written))
    return EXACT.add(EXACT.add(total, output), weights["request"])


def weight_micro(weight: Decimal) -> int:
    """In whole millionths, rounded up: nothing weighs less than it says."""
    return int(weight.scaleb(6).to_integral_value(rounding=ROUND_CEILING))


def _weights(card: RateCard | None) -> Mapping[str, Decimal]:
    return _DEFAULTS if card is None else _DEFAULTS | dict(card.quota)
