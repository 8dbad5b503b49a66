"""Rating of storage: what an attestation of it costs.

    receivable/<tenant>    + amount
    revenue/storage        - amount of so many millionths of a token-hour

Priced by the version in force, and counted in the period, when the attestation's time began.
Invariant: postings sum to zero and follow from attestation and version. An hour is no power of ten:
exact seconds are charged in whole millionths of a token-hour, which are 3.6 token-milliseconds,
rounded down once an attestation. Pure, any thread.
"""

from billing.attestation import (
    Attestation,
    attestation_from_text,
    attestation_text,
    refusal_of_attestation,
)
from billing.line import LineKey, RatedLine
from billing.money import EXACT, ZERO
from billing.price_book import PriceVersion
from billing.price_card import StorageMeter
from billing.rating import Posting, account_of

__all__ = ["STORAGE_KIND", "storage_line", "storage_of_text", "storage_postings"]

STORAGE_KIND = "storage"
"""Of entries."""

MICRO = 10**6
"""Token-hours are counted in millionths."""


def storage_line(said: Attestation, version: PriceVersion) -> RatedLine | None:
    """None: it costs nothing, or has no price."""
    storage = said.storage
    assert storage is not None
    card = version.card_of(storage.model)
    if card is None or card.storage is None:
        return None
    meter, price = card.storage.meter, card.storage.price
    quantity = {
        StorageMeter.EXACT_SECONDS: storage.token_milliseconds * 5 // 18,
        StorageMeter.HOURLY_MAXIMUM: storage.maximum_tokens * MICRO,
        StorageMeter.STARTED_HOUR: storage.started_tokens * MICRO,
    }[meter]
    rule = f"{storage.tier}, {meter.value.replace('_', ' ')}"
    key = LineKey("storage", "", price, card.per * MICRO, ZERO, rule)
    return RatedLine(key, quantity) if quantity else None


def storage_of_text(text: str) -> Attestation:
    """Of an entry. Raises ValueError when `text` is not exactly such a line."""
    try:
        said = attestation_from_text(text)
        wrong = said.storage is None or refusal_of_attestation(said) is not None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not stored storage: {error}") from None
    if wrong or attestation_text(said) != text:
        raise ValueError("not the canonical text of storage")
    return said


def storage_postings(said: Attestation, version: PriceVersion | None) -> tuple[Posting, ...]:
    """None where there is no price, or nothing to charge."""
    line = storage_line(said, version) if version is not None else None
    if line is None or version is None:
        return ()
    assert said.storage is not None
    amount, meter = line.amount, line.key.meter
    negative = EXACT.minus(amount) if amount else ZERO
    return (
        Posting(f"receivable/{said.storage.tenant_id}", "", 0, amount, version.currency),
        Posting(account_of(meter), meter, line.quantity, negative, version.currency),
    )
