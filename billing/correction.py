"""Corrections: what is put right by new postings that refer to an entry, never by changing one.

    credit     the tenant owes `amount` less; at most what it still owes for the entry
    charge     the tenant owes `amount` more
    reverse    the tenant owes nothing for the entry any more
    settle     an entry without a price is rated by the book of now

Their postings: `receivable/<tenant>` against `revenue/correction`; a settlement's are those that
rating gives. Invariant: equal content gives equal text for ever. Frozen: it is hashed. Frozen data
and pure functions, any thread.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

from billing.money import EXACT, ZERO, parse_price, to_text
from billing.rating import Posting
from billing.usage import RESERVED_PREFIX

__all__ = [
    "CORRECTION_PREFIX",
    "Correction",
    "CorrectionAsk",
    "CorrectionKind",
    "correction_from_text",
    "correction_text",
    "plain_postings",
]

CORRECTION_PREFIX = RESERVED_PREFIX
"""Begins what stands for a request's id in a correction's entry; no event's id begins so."""

_ACCOUNT = "revenue/correction"
_CLASS = "correction"


class CorrectionKind(Enum):
    """Values are stored: frozen."""

    CREDIT = "credit"
    CHARGE = "charge"
    REVERSE = "reverse"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True)
class CorrectionAsk:
    """What an operator asks for; `correction_id` makes it happen once."""

    correction_id: str
    kind: CorrectionKind
    request_id: str
    reason: str
    operator: str
    amount: Decimal | None = None
    """Of a credit or charge, above 0."""
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """One that happened, as its entry has it."""

    ask: CorrectionAsk
    corrects: int
    """Position of the entry."""
    tenant_id: str
    amount: Decimal
    """What the tenant owes more; negative: less."""
    currency: str
    time_ns: int


def plain_postings(correction: Correction) -> tuple[Posting, ...]:
    """Of a correction that is no settlement; none where there was nothing to reverse."""
    if not correction.amount:
        return ()
    owed, currency = correction.amount, correction.currency
    return (
        Posting(f"receivable/{correction.tenant_id}", "", 0, owed, currency),
        Posting(_ACCOUNT, _CLASS, 0, EXACT.minus(owed), currency),
    )


def correction_text(correction: Correction) -> str:
    """Canonical text: one line of ASCII JSON."""
    ask = correction.ask
    fields = {
        "amount": to_text(correction.amount),
        "asked_amount": None if ask.amount is None else to_text(ask.amount),
        "correction_id": ask.correction_id,
        "corrects": correction.corrects,
        "currency": correction.currency,
        "kind": ask.kind.value,
        "operator": ask.operator,
        "reason": ask.reason,
        "request_id": ask.request_id,
        "tenant_id": correction.tenant_id,
        "time_ns": correction.time_ns,
    }
    return json.dumps({"correction": fields}, separators=(",", ":"), ensure_ascii=True)


def correction_from_text(text: str) -> Correction:
    """Inverse of `correction_text`. Raises ValueError when `text` is not exactly such a line."""
    try:
        correction = _read(json.loads(text)["correction"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a stored correction: {error}") from None
    if correction_text(correction) != text:
        raise ValueError("not the canonical text of a correction")
    return correction


def _read(fields: dict[str, Any]) -> Correction:
    asked = fields["asked_amount"]
    ask = CorrectionAsk(
        correction_id=fields["correction_id"],
        kind=CorrectionKind(fields["kind"]),
        request_id=fields["request_id"],
        reason=fields["reason"],
        operator=fields["operator"],
        amount=None if asked is None else parse_price(asked),
        currency=fields["currency"],
    )
    amount = Decimal(fields["amount"])
    return Correction(
        ask=ask,
        corrects=int(fields["corrects"]),
        tenant_id=fields["tenant_id"],
        amount=amount if amount else ZERO,
        currency=fields["currency"],
        time_ns=int(fields["time_ns"]),
    )
