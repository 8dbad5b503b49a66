"""Entries by a request's id, or by the client's own name for it.

Reads one snapshot; a reader's thread.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, case, or_, select

from billing.corrected import CorrectedEntry, corrections_of_entry
from billing.errors import EventUnknownError
from billing.explain import ExplainedLine, explained_lines, notes_of
from billing.ledger_schema import entries, postings, price_versions
from billing.money import ZERO
from billing.price_book import version_from_text
from billing.rating import facts_of
from billing.usage import UsageEvent, event_from_text

__all__ = ["FoundEntry", "found_entries"]

FOUND_MAX = 100


@dataclass(frozen=True, slots=True)
class FoundEntry:
    """An entry of a usage event, and what the tenant owes for it."""

    position: int
    event: UsageEvent
    recorded_time_ns: int
    amount: Decimal
    currency: str
    """Empty: unrated."""
    price_version: str
    hash: bytes
    corrections: tuple[CorrectedEntry, ...]
    lines: tuple[ExplainedLine, ...] = ()
    """What the amount is made of, and why."""
    notes: tuple[str, ...] = ()
    """What was charged otherwise than it was counted."""


def found_entries(
    connection: Connection, name: str, tenant_id: str = "", project_id: str = ""
) -> list[FoundEntry]:
    """Those named `name`, of the tenant and project where these are given. Raises
    EventUnknownError.
    """
    unknown = EventUnknownError(
        "no event has that id, as the worker or the client gave it; it may not have been delivered"
        " yet, or belong to another tenant"
    )
    if not name.isprintable():
        raise unknown
    by_request = entries.c.request_id == name
    query = (
        select(entries, price_versions.c.name, price_versions.c.text, postings.c.amount)
        .outerjoin(price_versions, price_versions.c.price_id == entries.c.price_id)
        .outerjoin(postings, (postings.c.position == entries.c.position) & (postings.c.line == 1))
        .where(or_(by_request, entries.c.client_request_id == name), entries.c.kind == "usage")
        .order_by(case((by_request, 0), else_=1), entries.c.position)
        .limit(FOUND_MAX)
    )
    if tenant_id:
        query = query.where(entries.c.tenant_id == tenant_id)
    if project_id:
        query = query.where(entries.c.project_id == project_id)
    found = [_entry_of(connection, row) for row in connection.execute(query).all()]
    if not found:
        raise unknown
    return found


def _entry_of(connection: Connection, row: Any) -> FoundEntry:
    event = event_from_text(row.event)
    version = version_from_text(row.text) if row.text is not None else None
    facts = facts_of(event)
    return FoundEntry(
        position=row.position,
        event=event,
        recorded_time_ns=row.recorded_time_ns,
        amount=Decimal(row.amount) if row.amount is not None else ZERO,
        currency=version.currency if version is not None else "",
        price_version=row.name or "",
        hash=bytes(row.hash),
        corrections=tuple(corrections_of_entry(connection, row.position)),
        lines=explained_lines(facts, version) if version is not None else (),
        notes=notes_of(facts, version) if version is not None else (),
    )
