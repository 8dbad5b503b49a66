"""A quote: what tokens cost at a time, before or beside any entry.

Invariant: for the tokens and end time of an event, a quote's amount is the sum that `rating` posts:
both add `amounts_by_class`. Writes nothing. Pure, any thread.
"""

from dataclasses import dataclass
from decimal import Decimal

from billing.errors import InvalidUsageError
from billing.money import EXACT, ZERO
from billing.price_book import PriceBook
from billing.rating import amounts_by_class
from billing.report import saved_by_hits
from billing.usage import TokenCounts, token_refusal

__all__ = ["Quote", "quote"]


@dataclass(frozen=True, slots=True)
class Quote:
    """Exact amounts; without a currency they are zero and mean nothing."""

    amount: Decimal = ZERO
    saved: Decimal = ZERO
    """What the hit tokens would have cost more as miss tokens."""
    currency: str = ""
    """Empty: no version covers the model at that time."""
    price_version: str = ""


def quote(book: PriceBook, model: str, tokens: TokenCounts, end_time_ns: int) -> Quote:
    """What `tokens` of `model` cost when a request ends at that time. Raises InvalidUsageError."""
    refusal = token_refusal(tokens)
    if refusal is not None:
        raise InvalidUsageError(
            f"these tokens cannot be rated ({refusal.value}): hit + miss = prompt, the tiers add up"
            " to the hit, and no count is negative or over 10^10",
            problem=refusal.value,
        )
    version = book.version_for(end_time_ns, model)
    price = version.price_of(model) if version is not None else None
    if version is None or price is None:
        return Quote()
    amount = ZERO
    for _, _, part in amounts_by_class(tokens, price):
        amount = EXACT.add(amount, part)
    return Quote(amount, saved_by_hits(tokens.hit, price), version.currency, version.name)
