"""Corrections of a period, as reports and invoices show them: in the period in which they were
made, so that an invoice that was sent stays what it was. Reads one snapshot; a reader's thread.
"""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import ColumnElement, Connection, select

from billing.correction import Correction, correction_from_text
from billing.entry_filter import of_period
from billing.ledger_schema import entries, price_versions
from billing.money import round_line
from billing.period import Period
from billing.price_book import version_from_text

__all__ = ["CorrectedEntry", "corrections_of", "corrections_of_entry", "settled_count"]


@dataclass(frozen=True, slots=True)
class CorrectedEntry:
    """A correction beside what its entry is grouped by."""

    position: int
    correction: Correction
    model: str
    project_id: str | None
    key_id: str | None
    invoice_decimals: int
    """Of the price version that rated the entry, or settles it."""

    @property
    def line_amount(self) -> Decimal:
        """Rounded once, as an invoice's lines are."""
        return round_line(self.correction.amount, self.invoice_decimals)


def corrections_of(
    connection: Connection, period: Period, tenant_id: str = "", project_id: str = ""
) -> list[CorrectedEntry]:
    """Those made in `period`, in the order of the ledger."""
    return _found(connection, *of_period(period, tenant_id, project_id))


def corrections_of_entry(connection: Connection, position: int) -> list[CorrectedEntry]:
    return _found(connection, entries.c.corrects == position)


def settled_count(connection: Connection, period: Period, tenant_id: str) -> int:
    """Unrated events that ended in `period` and were settled since, whenever that was."""
    of = entries.alias()
    query = (
        select(of.c.position)
        .join(entries, entries.c.corrects == of.c.position)
        .where(entries.c.kind != "usage", entries.c.price_id.is_not(None))
        .where(of.c.tenant_id == tenant_id, of.c.price_id.is_(None))
    )
    if period.start_ns is not None:
        query = query.where(of.c.end_time_ns >= period.start_ns)
    if period.end_ns is not None:
        query = query.where(of.c.end_time_ns < period.end_ns)
    return len(set(connection.execute(query).scalars()))


def _found(connection: Connection, *conditions: ColumnElement[bool]) -> list[CorrectedEntry]:
    of, of_version = entries.alias(), price_versions.alias()
    settling, settling_version = entries.alias(), price_versions.alias()
    settled_text = (
        select(settling_version.c.text)
        .join(settling, settling.c.price_id == settling_version.c.price_id)
        .where(settling.c.corrects == entries.c.corrects)
        .order_by(settling.c.position)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(
            entries,
            price_versions.c.text,
            of_version.c.text.label("of_text"),
            settled_text.label("settled_text"),
        )
        .join(of, of.c.position == entries.c.corrects)
        .outerjoin(price_versions, price_versions.c.price_id == entries.c.price_id)
        .outerjoin(of_version, of_version.c.price_id == of.c.price_id)
        .where(entries.c.kind != "usage", *conditions)
        .order_by(entries.c.position)
    )
    return [
        CorrectedEntry(
            position=row.position,
            correction=correction_from_text(row.event),
            model=row.model,
            project_id=row.project_id,
            key_id=row.key_id,
            invoice_decimals=version_from_text(
                row.text or row.of_text or row.settled_text
            ).invoice_decimals,
        )
        for row in connection.execute(query)
    ]
