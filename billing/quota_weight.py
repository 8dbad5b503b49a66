"""What a request weighs in a limit on tokens: hits may weigh less than misses.

Invariant: a weight follows from the tokens that were counted and the card's `quota` alone, never
from a price: a promotion widens no limit that protects a machine. Exact. Pure, any thread.
"""

from decimal import Decimal

from billing.money import EXACT, ONE, ZERO
from billing.price_card import CACHE_WRITE, HIT_TIERS, RateCard
from billing.usage import TokenCounts

__all__ = ["quota_weight"]

_DEFAULTS = {"hit": ONE, "miss": ONE, "output": ONE, CACHE_WRITE: ZERO, "request": ZERO}
"""Of meters that a card does not name: tokens weigh one each, what is beside them nothing."""


def quota_weight(tokens: TokenCounts, card: RateCard) -> Decimal:
    """The weight of a request. A tier that is not named weighs as "hit" does."""
    weights = _DEFAULTS | dict(card.quota)
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
        "request": 1,
    }
    total = ZERO
    for meter, count in counts.items():
        weight = weights.get(meter, weights["hit"])
        total = EXACT.add(total, EXACT.multiply(Decimal(count), weight))
    return total
