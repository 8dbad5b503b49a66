"""Invoices: one tenant's statement of a period.

A line is a model, a price version and a line key: a token class at a price. A line's amount is the
exact amount rounded once, half to even, to the version's `invoice_decimals`; the total is the exact
sum of the lines' amounts, so it can be checked by adding up what is printed. Reads one snapshot; a
reader's thread.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Connection, select

from billing.account_month import settle_month
from billing.corrected import CorrectedEntry, corrections_of, settled_count
from billing.errors import InvalidPeriodError, TenantUnknownError
from billing.ledger_schema import entries
from billing.line import LineKey, saved_by_hits, saved_net
from billing.money import EXACT, UNIT_TOKENS, ZERO, round_line
from billing.month import month_of
from billing.period import Period
from billing.price_book import PriceVersion
from billing.price_card import CACHE_WRITE, METERS
from billing.settlement import Adjustment, CreditState
from billing.storage_rating import STORAGE_KIND
from billing.terms import Terms, TermsSheet
from billing.usage import TenantId
from billing.usage_sums import UsageSum, usage_sums

__all__ = ["Invoice", "InvoiceLine", "invoice_lines", "invoice_of"]

_ORDER = {
    name: place for place, name in enumerate((*METERS[:-1], CACHE_WRITE, METERS[-1], "storage"))
}


_CHARGED = ("usage", STORAGE_KIND)


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """Tokens of one class, of one model, at one price."""

    model: str
    token_class: str
    quantity_tokens: int
    unit_price: Decimal
    amount: Decimal
    price_version: str
    cache_write_ttl_class: str = ""
    unit_tokens: int = UNIT_TOKENS
    rule: str = ""
    """What made the price beside the base rates."""


@dataclass(frozen=True, slots=True)
class Invoice:
    tenant_id: TenantId
    period: Period
    currency: str
    """Empty when no event of the period has a price."""
    lines: tuple[InvoiceLine, ...]
    saved: Decimal
    """What the hit tokens would have cost more as miss tokens; rounded as lines are."""
    net_saved: Decimal
    """Less what cache writes and storage cost; rounded alike."""
    request_count: int
    unrated_request_count: int
    cache_writes: tuple[tuple[str, int], ...] = ()
    """(TTL class, tokens), charged or not, without those of unrated requests."""
    terms: Terms | None = None
    """None: the tenant has none, or the period is no calendar month."""
    adjustments: tuple[Adjustment, ...] = ()
    """What terms add and take off."""
    credits: tuple[CreditState, ...] = ()
    """What is left of each valid credit after this invoice."""
    corrections: tuple[CorrectedEntry, ...] = ()
    """Made in the period, whenever their requests were; in the total."""

    @property
    def total(self) -> Decimal:
        total = ZERO
        for line in self.lines:
            total = EXACT.add(total, line.amount)
        for adjustment in self.adjustments:
            total = EXACT.add(total, adjustment.amount)
        for corrected in self.corrections:
            total = EXACT.add(total, corrected.line_amount)
        return total


NO_TERMS = TermsSheet()


def invoice_of(
    connection: Connection, tenant_id: TenantId, period: Period, sheet: TermsSheet = NO_TERMS
) -> Invoice:
    """The statement of `tenant_id`; terms apply where `period` is a calendar month of UTC.

    Raises TenantUnknownError, InvalidPeriodError.
    """
    known = select(entries.c.position).where(entries.c.tenant_id == tenant_id)
    if connection.execute(known.where(entries.c.kind.in_(_CHARGED)).limit(1)).first() is None:
        raise TenantUnknownError(
            f'the ledger has no event of tenant "{tenant_id}"; a report by tenant names those it'
            " has"
        )
    sums = usage_sums(connection, period, tenant_id)
    rated = [each for each in sums if each.version is not None]
    unrated_count = sum(each.request_count for each in sums if each.version is None)
    corrections = corrections_of(connection, period, tenant_id)
    currencies = sorted(
        {each.version.currency for each in rated if each.version is not None}
        | {each.correction.currency for each in corrections}
    )
    if len(currencies) > 1:
        raise InvalidPeriodError(
            f"the period is priced in {' and '.join(currencies)}; ask for one invoice up to the"
            " change of currency and one from there",
            currencies=",".join(currencies),
        )
    lines, saved, net_saved = invoice_lines(rated)
    month = month_of(period)
    settled = settle_month(connection, tenant_id, month, sheet, rated) if month else None
    cache_writes = Counter[str]()
    for each in rated:
        cache_writes.update(each.cache_writes)
    return Invoice(
        tenant_id=tenant_id,
        period=period,
        currency=currencies[0] if currencies else settled.terms.currency if settled else "",
        lines=lines,
        saved=saved,
        net_saved=net_saved,
        request_count=sum(each.request_count for each in sums),
        unrated_request_count=unrated_count - settled_count(connection, period, tenant_id),
        corrections=tuple(corrections),
        cache_writes=tuple(sorted(cache_writes.items())),
        terms=settled.terms if settled else None,
        adjustments=settled.settlement.adjustments if settled else (),
        credits=settled.settlement.credits if settled else (),
    )


def invoice_lines(sums: Sequence[UsageSum]) -> tuple[tuple[InvoiceLine, ...], Decimal, Decimal]:
    """Lines by model, then oldest price first; what hits saved, and what is left of it when the
    cache's writes and storage are paid, both rounded as lines are."""
    lines: list[InvoiceLine] = []
    saved, net = ZERO, ZERO
    for each in sorted(sums, key=_order):
        assert each.version is not None, "unrated usage has no lines"
        lines += [
            _line(each.model, each.version, key, quantity)
            for key, quantity in sorted(each.quantities.items(), key=lambda item: _place(item[0]))
        ]
        exact, exact_net = ZERO, ZERO
        for key, quantity in each.quantities.items():
            exact = EXACT.add(exact, saved_by_hits(key, quantity))
            exact_net = EXACT.add(exact_net, saved_net(key, quantity))
        saved = EXACT.add(saved, round_line(exact, each.version.invoice_decimals))
        net = EXACT.add(net, round_line(exact_net, each.version.invoice_decimals))
    return tuple(lines), saved, net


def _order(found: UsageSum) -> tuple[str, int, str]:
    assert found.version is not None
    return found.model, found.version.effective_time_ns, found.version.name


def _place(key: LineKey) -> tuple[int, str, str, Decimal]:
    return _ORDER[key.meter], key.ttl_class, key.rule, key.unit_price


def _line(model: str, version: PriceVersion, key: LineKey, quantity: int) -> InvoiceLine:
    return InvoiceLine(
        model=model,
        token_class=key.meter,
        quantity_tokens=quantity,
        unit_price=key.unit_price,
        amount=round_line(key.amount(quantity), version.invoice_decimals),
        price_version=version.name,
        cache_write_ttl_class=key.ttl_class,
        unit_tokens=key.per,
        rule=key.rule,
    )
