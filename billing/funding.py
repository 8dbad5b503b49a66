"""Fundings: what puts money into a tenant's wallet, or takes it out again.

    top_up        payments/received against prepaid/<tenant>
    grant         expense/grants    against granted/<tenant>, perhaps with an end
    withdrawal    prepaid/<tenant>  against payments/received; at most what was paid in and is left

Each is an entry of the ledger, once per its id. Invariant: equal content gives equal text for ever.
Frozen: it is hashed. Frozen data and pure functions, any thread.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

from billing.money import EXACT, parse_price, to_text
from billing.rating import Posting

__all__ = [
    "FUNDING_KINDS",
    "FUNDING_PREFIX",
    "Funding",
    "FundingAsk",
    "FundingKind",
    "funding_from_text",
    "funding_postings",
    "funding_text",
]

FUNDING_PREFIX = "funding\n"
"""Begins what stands for a request's id in the entry: no event's id has an unprintable letter."""


class FundingKind(Enum):
    """Values are stored, as an entry's kind too: frozen."""

    TOP_UP = "top_up"
    GRANT = "grant"
    WITHDRAWAL = "withdrawal"


FUNDING_KINDS = frozenset(kind.value for kind in FundingKind)

_ACCOUNTS = {
    FundingKind.TOP_UP: ("payments/received", "prepaid/"),
    FundingKind.GRANT: ("expense/grants", "granted/"),
    FundingKind.WITHDRAWAL: ("prepaid/", "payments/received"),
}


@dataclass(frozen=True, slots=True)
class FundingAsk:
    """What somebody asks for; `funding_id` makes it happen once."""

    funding_id: str
    kind: FundingKind
    tenant_id: str
    amount: Decimal
    """Above 0."""
    currency: str
    reason: str
    operator: str
    expires_ns: int | None = None
    """Of a grant; None: never."""


@dataclass(frozen=True, slots=True)
class Funding:
    """One that happened, as its entry has it."""

    ask: FundingAsk
    time_ns: int


def funding_postings(funding: Funding) -> tuple[Posting, ...]:
    ask = funding.ask
    debit, credit = (
        name + ask.tenant_id if name.endswith("/") else name for name in _ACCOUNTS[ask.kind]
    )
    return (
        Posting(debit, "", 0, ask.amount, ask.currency),
        Posting(credit, ask.kind.value, 0, EXACT.minus(ask.amount), ask.currency),
    )


def funding_text(funding: Funding) -> str:
    """Canonical text: one line of ASCII JSON."""
    ask = funding.ask
    fields = {
        "amount": to_text(ask.amount),
        "currency": ask.currency,
        "expires_ns": ask.expires_ns,
        "funding_id": ask.funding_id,
        "kind": ask.kind.value,
        "operator": ask.operator,
        "reason": ask.reason,
        "tenant_id": ask.tenant_id,
        "time_ns": funding.time_ns,
    }
    return json.dumps({"funding": fields}, separators=(",", ":"), ensure_ascii=True)


def funding_from_text(text: str) -> Funding:
    """Inverse of `funding_text`. Raises ValueError when `text` is not exactly such a line."""
    try:
        funding = _read(json.loads(text)["funding"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a stored funding: {error}") from None
    if funding_text(funding) != text:
        raise ValueError("not the canonical text of a funding")
    return funding


def _read(fields: dict[str, Any]) -> Funding:
    ask = FundingAsk(
        funding_id=fields["funding_id"],
        kind=FundingKind(fields["kind"]),
        tenant_id=fields["tenant_id"],
        amount=parse_price(fields["amount"]),
        currency=fields["currency"],
        reason=fields["reason"],
        operator=fields["operator"],
        expires_ns=fields["expires_ns"],
    )
    return Funding(ask, fields["time_ns"])
