"""Charges: a period's usage by day, tenant, project, key, model, class and price, exactly.

What an export is made of: the finest sums that say nothing of single requests. Amounts are exact,
so they add up to the report's to the last digit; an invoice rounds its lines (`money.round_line`).
Reads one snapshot; runs on a reader's thread.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import starmap
from typing import Any

from sqlalchemy import Connection

from billing.corrected import CorrectedEntry, corrections_of
from billing.errors import TooManyRowsError
from billing.line import LineKey
from billing.period import Period
from billing.price_book import PriceVersion
from billing.usage_sums import usage_sums

__all__ = ["CHARGES_MAX", "Charge", "Charges", "charges_of"]

CHARGES_MAX = 20_000
"""About 4 MiB on the wire."""

_GROUP_BY = ("day", "tenant", "project", "key")


@dataclass(frozen=True, slots=True)
class Charge:
    """Of one day of UTC."""

    day: int
    """Days since 1970."""
    tenant_id: str
    project_id: str | None
    """None: nobody said."""
    key_id: str | None
    model: str
    version: PriceVersion
    key: LineKey
    quantity: int

    @property
    def amount(self) -> Decimal:
        return self.key.amount(self.quantity)


@dataclass(frozen=True, slots=True)
class Charges:
    rows: Sequence[Charge]
    """By day, tenant, project, key, model, version and class."""
    corrections: Sequence[CorrectedEntry]
    """Made in the period, whenever their requests were."""
    unrated_request_count: int
    """Requests that no version covers: in no row."""


def charges_of(
    connection: Connection, period: Period, tenant_id: str = "", project_id: str = ""
) -> Charges:
    """Empty ids: all. Raises TooManyRowsError over CHARGES_MAX."""
    found = Counter[tuple[Any, ...]]()
    unrated = 0
    for each in usage_sums(connection, period, tenant_id, _GROUP_BY, project_id):
        if each.version is None:
            unrated += each.request_count
            continue
        for key, quantity in each.quantities.items():
            found[(*each.group, each.model, each.version, key)] += quantity
        if len(found) > CHARGES_MAX:
            raise _too_many()
    corrections = corrections_of(connection, period, tenant_id, project_id)
    if len(found) + len(corrections) > CHARGES_MAX:
        raise _too_many()
    rows = sorted(starmap(_charge, found.items()), key=_order)
    return Charges(rows, corrections, unrated)


def _too_many() -> TooManyRowsError:
    return TooManyRowsError(
        f"there are more than {CHARGES_MAX} charges; name a tenant or a shorter period"
    )


def _charge(group: tuple[Any, ...], quantity: int) -> Charge:
    day, tenant_id, project_id, key_id, model, version, key = group
    return Charge(day, tenant_id, project_id, key_id, model, version, key, quantity)


def _order(charge: Charge) -> tuple[Any, ...]:
    key = charge.key
    return (
        charge.day,
        charge.tenant_id,
        charge.project_id or "",
        charge.key_id or "",
        charge.model,
        charge.version.effective_time_ns,
        key.meter,
        key.ttl_class,
        key.rule,
        key.unit_price,
    )
