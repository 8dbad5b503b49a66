"""A quote: what tokens cost at a time, before or beside any entry, and why.

Invariant: for the tokens and end time of an event, a quote's amount is the sum that `rating` posts:
both add the same lines. Writes nothing. Pure, any thread.
"""

from dataclasses import dataclass
from decimal import Decimal

from billing.errors import InvalidUsageError
from billing.explain import ExplainedLine, explained_lines, notes_of
from billing.line import saved_by_hits, total_of
from billing.money import EXACT, ZERO
from billing.price_book import PriceBook
from billing.rating import Facts
from billing.usage import token_refusal

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
    lines: tuple[ExplainedLine, ...] = ()
    notes: tuple[str, ...] = ()
    """What is charged otherwise than it was counted."""


def quote(book: PriceBook, facts: Facts) -> Quote:
    """What a request costs that ends at that time. Raises InvalidUsageError."""
    refusal = token_refusal(facts.tokens)
    if refusal is not None:
        raise InvalidUsageError(
            f"these tokens cannot be rated ({refusal.value}): hit + miss = prompt, the tiers add up"
            " to the hit, and no count is negative or over 10^10",
            problem=refusal.value,
        )
    version = book.version_for(facts.end_time_ns, facts.model)
    if version is None:
        return Quote()
    lines = explained_lines(facts, version)
    saved = ZERO
    for each in lines:
        saved = EXACT.add(saved, saved_by_hits(each.line.key, each.line.quantity))
    return Quote(
        total_of(each.line for each in lines),
        saved,
        version.currency,
        version.name,
        lines,
        notes_of(facts, version),
    )
