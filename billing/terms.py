"""Terms: what an account and a calendar month decide, beside the price book.

    list amounts -> allowances -> discounts -> minimum charge -> credits

Invariant: terms change no posting; they are lines of an invoice, each rounded once, and the same
usage under the same terms always gives the same lines. Months are of UTC. Frozen data, any thread.
"""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import NewType

from billing.money import to_text
from billing.pattern import fits
from billing.price_text import canonical

__all__ = ["Allowance", "Credit", "Discount", "Terms", "TermsId", "TermsSheet"]

TermsId = NewType("TermsId", str)
"""SHA-256 of the terms' canonical text, hexadecimal."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many of some meters cost nothing in each month."""

    name: str
    model_pattern: str
    meters: tuple[str, ...]
    quantity: int

    def holds(self, model: str, meter: str) -> bool:
        return meter in self.meters and fits(self.model_pattern, model)


@dataclass(frozen=True, slots=True)
class Discount:
    """What is left of the price of some meters; the first that fits a line counts."""

    name: str
    model_pattern: str
    meters: tuple[str, ...]
    """Empty: all."""
    times: Decimal

    def holds(self, model: str, meter: str) -> bool:
        return fits(self.model_pattern, model) and (not self.meters or meter in self.meters)


@dataclass(frozen=True, slots=True)
class Credit:
    """Pays on invoices of months in which it is valid, whole or in part, until it is used up."""

    name: str
    amount: Decimal
    start_ns: int
    end_ns: int
    """Expiry: not included."""


@dataclass(frozen=True)
class Terms:
    """Of the tenants that fit a pattern, from a month on."""

    name: str
    tenant_pattern: str
    start_ns: int
    """The beginning of a month."""
    currency: str
    decimals: int
    """Places that a line is rounded to."""
    minimum_charge: Decimal
    allowances: tuple[Allowance, ...] = ()
    discounts: tuple[Discount, ...] = ()
    credits: tuple[Credit, ...] = ()

    @cached_property
    def text(self) -> str:
        """Canonical text, one line of ASCII JSON. Frozen: its hash names the terms on invoices."""
        return canonical(
            {
                "allowances": [
                    [a.name, a.model_pattern, list(a.meters), a.quantity] for a in self.allowances
                ],
                "credits": [
                    [c.name, to_text(c.amount), c.start_ns, c.end_ns] for c in self.credits
                ],
                "currency": self.currency,
                "decimals": self.decimals,
                "discounts": [
                    [d.name, d.model_pattern, list(d.meters), to_text(d.times)]
                    for d in self.discounts
                ],
                "minimum_charge": to_text(self.minimum_charge),
                "name": self.name,
                "start_ns": self.start_ns,
                "tenant": self.tenant_pattern,
            }
        )

    @cached_property
    def id(self) -> TermsId:
        return TermsId(hashlib.sha256(self.text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class TermsSheet:
    """Everybody's terms. Of those that fit a tenant the latest that began holds; those that name it
    outright go before patterns."""

    terms: tuple[Terms, ...] = ()

    def of(self, tenant_id: str, time_ns: int) -> Terms | None:
        fitting = [
            each
            for each in self.terms
            if each.start_ns <= time_ns and fits(each.tenant_pattern, tenant_id)
        ]
        own = [each for each in fitting if each.tenant_pattern == tenant_id]
        return max(own or fitting, key=lambda each: each.start_ns, default=None)
