"""A quote: what tokens cost at a time, before or beside any entry.

Invariant: for the tokens and end time of an event, a quote's amount is the sum that `rating` posts:
both add the same lines. Writes nothing. Pure, any thread.
"""

from dataclasses import dataclass
from decimal import Decimal

from billing.errors import InvalidUsageError
from billing.line import RatedLine, saved_by_hits, total_of
from billing.money import EXACT, ZERO
from billing.price_book import PriceBook
from billing.rating import Facts, rated_lines
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
    lines: tuple[RatedLine, ...] = ()


def quote(
    book: PriceBook, model: str, tokens: TokenCounts, end_time_ns: int, service_class: str = ""
) -> Quote:
    """What `tokens` of `model` cost when a request ends at that time. Raises InvalidUsageError."""
    refusal = token_refusal(tokens)
    if refusal is not None:
        raise InvalidUsageError(
            f"these tokens cannot be rated ({refusal.value}): hit + miss = prompt, the tiers add up"
            " to the hit, and no count is negative or over 10^10",
            problem=refusal.value,
        )
    version = book.version_for(end_time_ns, model)
    if version is None:
        return Quote()
    lines = rated_lines(Facts(model, tokens, end_time_ns, service_class), version)
    saved = ZERO
    for line in lines:
        saved = EXACT.add(saved, saved_by_hits(line.key, line.quantity))
    return Quote(total_of(lines), saved, version.currency, version.name, lines)
