"""Invoices: one tenant's statement of a period.

A line is a model, a token class and a price version. A line's amount is the exact amount rounded
once, half to even, to the version's `invoice_decimals`; the total is the exact sum of the lines'
amounts, so it can be checked by adding up what is printed. Reads one snapshot; a reader's thread.
"""

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Connection, select

from billing.corrected import CorrectedEntry, corrections_of, settled_count
from billing.errors import InvalidPeriodError, TenantUnknownError
from billing.ledger_schema import entries
from billing.money import EXACT, ZERO, amount_of, round_line
from billing.period import Period
from billing.price_book import Price, PriceVersion
from billing.rating import CACHE_WRITE, TOKEN_CLASSES, price_of_class
from billing.report import saved_by_hits, stored_versions
from billing.token_sums import token_sums
from billing.usage import TenantId

__all__ = ["Invoice", "InvoiceLine", "invoice_of"]


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


@dataclass(frozen=True, slots=True)
class Invoice:
    tenant_id: TenantId
    period: Period
    currency: str
    """Empty when no event of the period has a price."""
    lines: tuple[InvoiceLine, ...]
    saved: Decimal
    """What the hit tokens would have cost more as miss tokens; rounded as lines are."""
    request_count: int
    unrated_request_count: int
    cache_writes: tuple[tuple[str, int], ...] = ()
    """(TTL class, tokens), charged or not, without those of unrated requests."""
    corrections: tuple[CorrectedEntry, ...] = ()
    """Made in the period, whenever their requests were; in the total."""

    @property
    def total(self) -> Decimal:
        total = ZERO
        for line in self.lines:
            total = EXACT.add(total, line.amount)
        for corrected in self.corrections:
            total = EXACT.add(total, corrected.line_amount)
        return total


@dataclass(frozen=True, slots=True)
class _Usage:
    """What the ledger has of one model under one price version."""

    model: str
    version: PriceVersion
    price: Price
    quantities: dict[str, int]
    cache_writes: Counter[str]
    """By TTL class."""

    def lines(self) -> list[InvoiceLine]:
        lines = [
            self._line(name, self.quantities[name], price_of_class(self.price, name))
            for name in TOKEN_CLASSES
            if self.quantities[name]
        ]
        for ttl_class, quantity in sorted(self.cache_writes.items()):
            unit_price = self.price.cache_write_price(ttl_class)
            if unit_price is not None:
                lines.append(self._line(CACHE_WRITE, quantity, unit_price, ttl_class))
        return lines

    def saved(self) -> Decimal:
        exact = saved_by_hits(self.quantities["hit"], self.price)
        return round_line(exact, self.version.invoice_decimals)

    def _line(
        self, token_class: str, quantity: int, unit_price: Decimal, ttl_class: str = ""
    ) -> InvoiceLine:
        amount = round_line(amount_of(quantity, unit_price), self.version.invoice_decimals)
        version = self.version.name
        return InvoiceLine(
            self.model, token_class, quantity, unit_price, amount, version, ttl_class
        )


def invoice_of(connection: Connection, tenant_id: TenantId, period: Period) -> Invoice:
    """The statement of `tenant_id`. Raises TenantUnknownError, InvalidPeriodError."""
    known = select(entries.c.position).where(entries.c.tenant_id == tenant_id).limit(1)
    if connection.execute(known).first() is None:
        raise TenantUnknownError(
            f'the ledger has no event of tenant "{tenant_id}"; a report by tenant names those it'
            " has"
        )
    usages, request_count, unrated_count = _usages(connection, tenant_id, period)
    corrections = corrections_of(connection, period, tenant_id)
    currencies = sorted(
        {usage.version.currency for usage in usages}
        | {each.correction.currency for each in corrections}
    )
    if len(currencies) > 1:
        raise InvalidPeriodError(
            f"the period is priced in {' and '.join(currencies)}; ask for one invoice up to the"
            " change of currency and one from there",
            currencies=",".join(currencies),
        )
    saved, cache_writes = ZERO, Counter[str]()
    for usage in usages:
        saved = EXACT.add(saved, usage.saved())
        cache_writes.update(usage.cache_writes)
    return Invoice(
        tenant_id=tenant_id,
        period=period,
        currency=currencies[0] if currencies else "",
        lines=tuple(line for usage in usages for line in usage.lines()),
        saved=saved,
        request_count=request_count,
        unrated_request_count=unrated_count - settled_count(connection, period, tenant_id),
        corrections=tuple(corrections),
        cache_writes=tuple(sorted(cache_writes.items())),
    )


def _usages(
    connection: Connection, tenant_id: TenantId, period: Period
) -> tuple[list[_Usage], int, int]:
    """Usage by model and price version, oldest price first; requests; unrated requests."""
    versions = stored_versions(connection)
    usages: dict[tuple[str, str], _Usage] = {}
    request_count = unrated_count = 0
    for row in token_sums(connection, period, tenant_id):
        request_count += int(row.request_count)
        version = versions[row.price_id] if row.price_id is not None else None
        model = row.price_model
        price = version.price_of(model) if version is not None else None
        if version is None or price is None:
            unrated_count += int(row.request_count)
            continue
        usage = usages.setdefault(
            (model, version.id),
            _Usage(model, version, price, dict.fromkeys(TOKEN_CLASSES, 0), Counter()),
        )
        usage.quantities["hit"] += int(row.hit_gpu + row.hit_host + row.hit_ssd + row.hit_shared)
        usage.quantities["miss"] += int(row.miss)
        usage.quantities["output"] += int(row.output)
        if row.cache_write:
            usage.cache_writes[row.ttl_class] += int(row.cache_write)
    ordered = sorted(
        usages.values(),
        key=lambda usage: (usage.model, usage.version.effective_time_ns, usage.version.name),
    )
    return ordered, request_count, unrated_count
