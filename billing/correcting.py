"""How a correction becomes an entry: once per id, against what the tenant still owes for the entry
that it corrects. Runs in the writer's transaction, on its thread.
"""

from dataclasses import dataclass, replace
from decimal import Decimal

from sqlalchemy import Connection, Row, or_, select

from billing.correction import (
    CORRECTION_PREFIX,
    Correction,
    CorrectionAsk,
    CorrectionKind,
    correction_from_text,
    correction_text,
    plain_postings,
)
from billing.entry import Entry
from billing.errors import CorrectionConflictError, CorrectionRefusedError, EventUnknownError
from billing.ledger_rows import insert_rows
from billing.ledger_schema import entries, postings, price_versions
from billing.meter import Head, correction_row, posting_rows
from billing.money import EXACT, ZERO, to_text
from billing.price_book import PriceBook, PriceId, PriceVersion
from billing.rating import Posting, rate
from billing.usage import event_from_text

__all__ = ["Corrected", "amount_asked", "correct", "still_owed"]

_AMOUNT_KINDS = (CorrectionKind.CREDIT, CorrectionKind.CHARGE)
TEXT_CHARACTERS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Corrected:
    """A correction that is in the ledger."""

    position: int
    correction: Correction
    head: Head
    """After it."""
    new_price: PriceVersion | None = None
    again: bool = False
    """It was there already."""
    project_id: str | None = None
    """This and the next: of the entry that it corrects."""
    key_id: str | None = None


def correct(
    connection: Connection,
    head: Head,
    book: PriceBook,
    stored_prices: frozenset[PriceId],
    ask: CorrectionAsk,
    now_ns: int,
) -> Corrected:
    """Adds the correction, or finds that it is there.

    Raises CorrectionRefusedError, CorrectionConflictError, EventUnknownError.
    """
    _check(ask)
    known = _entry(connection, CORRECTION_PREFIX + ask.correction_id)
    if known is not None:
        return _again(known, ask, head)
    entry = _entry(connection, ask.request_id)
    if entry is None or entry.kind != "usage":
        raise EventUnknownError("the ledger has no event of that request_id to correct")
    currency, owed = still_owed(connection, entry.position)
    version: PriceVersion | None = None
    rated: tuple[Posting, ...] = ()
    if ask.kind is CorrectionKind.SETTLE:
        version, rated = _settlement(book, entry, currency)
        currency = version.currency
        amount = rated[0].amount if rated else ZERO
    else:
        amount = _amount(ask, owed, currency)
    ask = replace(ask, currency=currency)
    correction = Correction(ask, entry.position, entry.tenant_id, amount, currency, now_ns)
    made = Entry(
        position=head.position + 1,
        recorded_time_ns=now_ns,
        event_text=correction_text(correction),
        price_id=version.id if version is not None else None,
        postings=rated if version is not None else plain_postings(correction),
    )
    after = replace(head, position=made.position, hash=made.hash_after(head.hash))
    new_price = version if version is not None and version.id not in stored_prices else None
    if new_price is not None:
        row = {"price_id": new_price.id, "name": new_price.name, "text": new_price.text}
        insert_rows(connection, price_versions, [row])
    insert_rows(connection, entries, [correction_row(made, correction, entry, after.hash)])
    if made.postings:
        insert_rows(connection, postings, posting_rows(made.position, made.postings))
    return Corrected(
        made.position,
        correction,
        after,
        new_price,
        project_id=entry.project_id,
        key_id=entry.key_id,
    )


def still_owed(
    connection: Connection, position: int, before: int | None = None
) -> tuple[str, Decimal]:
    """(currency, amount) that the tenant owes for an entry, its corrections counted; those at or
    behind position `before` left out. The currency is "" where it was never rated.
    """
    query = (
        select(postings.c.amount, postings.c.currency)
        .join(entries, entries.c.position == postings.c.position)
        .where(
            postings.c.line == 1,
            or_(
                entries.c.position == position,
                (entries.c.kind != "usage") & (entries.c.corrects == position),
            ),
        )
    )
    if before is not None:
        query = query.where(entries.c.position < before)
    currency, owed = "", ZERO
    for row in connection.execute(query):
        currency, owed = row.currency, EXACT.add(owed, Decimal(row.amount))
    return currency, owed


def _check(ask: CorrectionAsk) -> None:
    for name, text in (
        ("correction_id", ask.correction_id),
        ("request_id", ask.request_id),
        ("reason", ask.reason),
        ("operator", ask.operator),
    ):
        if not text or len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
            raise CorrectionRefusedError(f"{name} must be said, in printable characters")
    wants = ask.kind in _AMOUNT_KINDS
    if wants != (ask.amount is not None) or (ask.amount is not None and ask.amount <= 0):
        raise CorrectionRefusedError(
            "a credit or charge names an amount above 0; the others name none"
        )


def _again(known: Row[tuple[object, ...]], ask: CorrectionAsk, head: Head) -> Corrected:
    found = correction_from_text(known.event)
    asked = replace(ask, currency=found.currency, operator=found.ask.operator)
    if asked != found.ask or ask.currency not in ("", found.currency):
        raise CorrectionConflictError(
            f'correction "{ask.correction_id}" is in the ledger already and says something else;'
            " give a new one another id",
            position=known.position,
        )
    return Corrected(known.position, found, head, again=True)


def _settlement(
    book: PriceBook, entry: Row[tuple[object, ...]], currency: str
) -> tuple[PriceVersion, tuple[Posting, ...]]:
    if entry.price_id is not None or currency:
        raise CorrectionRefusedError("the entry has a price already; only unrated ones are settled")
    event = event_from_text(entry.event)
    version = book.version_for(entry.end_time_ns, entry.model)
    if version is None:
        raise CorrectionRefusedError(
            "no version of the price book covers the event still; add one that does, with an"
            " effective_time before the event's end"
        )
    return version, rate(event, version)


def _amount(ask: CorrectionAsk, owed: Decimal, currency: str) -> Decimal:
    if not currency:
        raise CorrectionRefusedError("the entry has no price; settle it first")
    if ask.currency not in ("", currency):
        raise CorrectionRefusedError(f"the entry is in {currency}, not in {ask.currency}")
    amount = amount_asked(ask, owed)
    if amount is None:
        raise CorrectionRefusedError(
            f"the tenant owes {to_text(owed)} {currency} for it, and not more"
        )
    return amount


def amount_asked(ask: CorrectionAsk, owed: Decimal) -> Decimal | None:
    """What the tenant owes more where it owed `owed`; None: it cannot be given back so much."""
    if ask.kind is CorrectionKind.REVERSE:
        return EXACT.minus(owed) if owed else ZERO
    amount = ask.amount if ask.amount is not None else ZERO
    if ask.kind is CorrectionKind.CHARGE:
        return amount
    return None if amount > owed else EXACT.minus(amount)


def _entry(connection: Connection, request_id: str) -> Row[tuple[object, ...]] | None:
    query = select(entries).where(entries.c.request_id == request_id)
    return connection.execute(query).one_or_none()
