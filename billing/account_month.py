"""An account's month under its terms, from what the ledger has.

A credit's rest follows from the months before: each is settled again, under the terms that held
then, from the first month that the credit could pay in. Nothing is kept, so nothing can disagree
with the ledger. Reads one snapshot; a reader's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Connection, func, select

from billing.errors import InvalidPeriodError
from billing.ledger_schema import entries
from billing.money import EXACT, ZERO, round_line
from billing.month import month_at, next_month
from billing.period import Period
from billing.settlement import CreditState, Settlement, UsageCharge, settle
from billing.terms import Credit, Terms, TermsSheet
from billing.usage import TenantId
from billing.usage_sums import UsageSum, usage_sums

__all__ = ["AccountMonth", "settle_month"]


@dataclass(frozen=True, slots=True)
class AccountMonth:
    terms: Terms
    settlement: Settlement


def settle_month(
    connection: Connection,
    tenant_id: TenantId,
    month: Period,
    sheet: TermsSheet,
    sums: Sequence[UsageSum],
) -> AccountMonth | None:
    """`sums`: the tenant's usage of `month`. None: the tenant has no terms then.

    Raises InvalidPeriodError when terms and prices are in different currencies.
    """
    assert month.start_ns is not None
    terms = sheet.of(tenant_id, month.start_ns)
    if terms is None:
        return None
    left = _before(connection, tenant_id, month, sheet, terms)
    return AccountMonth(terms, _settled(month, terms, sums, left))


def _before(
    connection: Connection, tenant_id: TenantId, month: Period, sheet: TermsSheet, terms: Terms
) -> dict[Credit, Decimal]:
    """What was left of credits when `month` began; whole ones are not in it."""
    left: dict[Credit, Decimal] = {}
    own = (entries.c.tenant_id == tenant_id, entries.c.kind == "usage")
    first = connection.execute(select(func.min(entries.c.end_time_ns)).where(*own)).scalar()
    if not terms.credits or first is None:
        return left
    start_ns = max(min(credit.start_ns for credit in terms.credits), int(first))
    earlier = month_at(start_ns)
    while earlier.start_ns is not None and earlier.start_ns < (month.start_ns or 0):
        then = sheet.of(tenant_id, earlier.start_ns)
        if then is not None and then.credits:
            sums = usage_sums(connection, earlier, tenant_id)
            for state in _settled(earlier, then, sums, left).credits:
                left[state.credit] = state.left
        earlier = next_month(earlier)
    return left


def _settled(
    month: Period, terms: Terms, sums: Sequence[UsageSum], left: dict[Credit, Decimal]
) -> Settlement:
    usage, listed = [], ZERO
    for each in sums:
        if each.version is None:
            continue
        if each.version.currency != terms.currency:
            raise InvalidPeriodError(
                f'the terms "{terms.name}" are in {terms.currency} and prices in'
                f" {each.version.currency}; put them in the same currency",
                currencies=f"{terms.currency},{each.version.currency}",
            )
        for key, quantity in each.quantities.items():
            usage.append(UsageCharge(each.model, key, quantity))
            line = round_line(key.amount(quantity), each.version.invoice_decimals)
            listed = EXACT.add(listed, line)
    assert month.start_ns is not None
    assert month.end_ns is not None
    states = [
        CreditState(credit, left.get(credit, credit.amount))
        for credit in terms.credits
        if credit.start_ns < month.end_ns and credit.end_ns > month.start_ns
    ]
    return settle(usage, (), listed, terms, states)
