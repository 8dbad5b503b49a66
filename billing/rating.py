"""Rating: what an event costs, as balanced postings.

    receivable/<tenant>    + sum           what the tenant owes
    revenue/hit            - hit tokens    x hit price
    revenue/miss           - miss tokens   x miss price
    revenue/output         - output tokens x output price
    revenue/cache_write    - cache write tokens x the price of their TTL class, where it has one

Invariant: the postings of an event sum to exactly zero, and the same event and price version always
give the same postings. Every token that the event counts is charged; which tokens an end counts is
the worker's rule (docs/billing.md), and a lost worker's event counts none. A class without tokens
has no posting. Pure, any thread.
"""

from dataclasses import dataclass
from decimal import Decimal

from billing.money import EXACT, ZERO, amount_of
from billing.price_book import Price, PriceVersion
from billing.usage import TokenCounts, UsageEvent

__all__ = ["CACHE_WRITE", "TOKEN_CLASSES", "Posting", "amounts_by_class", "price_of_class", "rate"]

TOKEN_CLASSES = ("hit", "miss", "output")
"""In the order of postings and invoice lines. Frozen: the order is hashed."""

CACHE_WRITE = "cache_write"
"""Comes after those, where it has a price: its tokens are some of miss and output."""


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of an entry. Debits are positive."""

    account: str
    token_class: str
    """Empty on the tenant's side."""
    quantity_tokens: int
    amount: Decimal
    currency: str


def rate(event: UsageEvent, version: PriceVersion | None) -> tuple[Posting, ...]:
    """Postings of `event` under `version`; none when there is no price or nothing to charge."""
    price = version.price_of(event.model) if version is not None else None
    if version is None or price is None:
        return ()
    credits_ = []
    owed = ZERO
    for token_class, quantity, amount in amounts_by_class(event.tokens, price):
        owed = EXACT.add(owed, amount)
        negative = EXACT.minus(amount) if amount else ZERO
        account = f"revenue/{token_class}"
        credits_.append(Posting(account, token_class, quantity, negative, version.currency))
    if not credits_:
        return ()
    debit = Posting(f"receivable/{event.tenant_id}", "", 0, owed, version.currency)
    return (debit, *credits_)


def amounts_by_class(tokens: TokenCounts, price: Price) -> list[tuple[str, int, Decimal]]:
    """(token class, tokens, exact amount) of each class that has tokens."""
    quantities = zip(TOKEN_CLASSES, (tokens.hit, tokens.miss, tokens.output), strict=True)
    amounts = [
        (name, quantity, amount_of(quantity, price_of_class(price, name)))
        for name, quantity in quantities
        if quantity
    ]
    unit_price = price.cache_write_price(tokens.cache_write_ttl_class)
    if tokens.cache_write and unit_price is not None:
        amounts.append((CACHE_WRITE, tokens.cache_write, amount_of(tokens.cache_write, unit_price)))
    return amounts


def price_of_class(price: Price, token_class: str) -> Decimal:
    """The unit price of "hit", "miss" or "output"."""
    return {"hit": price.hit, "miss": price.miss, "output": price.output}[token_class]
