"""How a funding becomes an entry: once per id. Runs in the writer's transaction, on its thread."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select

from billing.entry import Entry, EntryHash
from billing.errors import FundingConflictError, FundingRefusedError
from billing.funding import (
    FUNDING_PREFIX,
    Funding,
    FundingAsk,
    FundingKind,
    funding_from_text,
    funding_postings,
    funding_text,
)
from billing.ledger_rows import insert_rows
from billing.ledger_schema import entries, postings
from billing.meter import Head, plain_row, posting_rows
from billing.wallets import Wallets

__all__ = ["Funded", "FundingAsk", "check_funding", "fund", "funding_entry", "funding_row"]

TEXT_CHARACTERS_MAX = 1024
CURRENCY_CHARACTERS_MAX = 16
TIME_NS_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Funded:
    """A funding that is in the ledger."""

    position: int
    funding: Funding
    head: Head
    """After it."""
    again: bool = False
    """It was there already."""


def fund(
    connection: Connection, head: Head, wallets: Wallets, ask: FundingAsk, now_ns: int
) -> Funded:
    """Adds the funding, or finds that it is there.

    Raises FundingRefusedError, FundingConflictError.
    """
    check_funding(ask)
    name = FUNDING_PREFIX + ask.funding_id
    query = select(entries.c.position, entries.c.event).where(entries.c.request_id == name)
    known = connection.execute(query).one_or_none()
    if known is not None:
        return _again(known.position, funding_from_text(known.event), ask, head)
    if ask.expires_ns is not None and ask.expires_ns <= now_ns:
        raise FundingRefusedError("the grant would have expired already; give it a later end")
    funding = Funding(ask, now_ns)
    made = funding_entry(funding, head.position + 1, now_ns)
    try:
        wallets.funded(funding, made.position)
    except ValueError as error:
        raise FundingRefusedError(f"the balance does not take it: {error}") from None
    after = replace(head, position=made.position, hash=made.hash_after(head.hash))
    insert_rows(connection, entries, [funding_row(made, funding, after.hash)])
    insert_rows(connection, postings, posting_rows(made.position, made.postings))
    return Funded(made.position, funding, after)


def funding_entry(funding: Funding, position: int, recorded_time_ns: int) -> Entry:
    return Entry(position, recorded_time_ns, funding_text(funding), None, funding_postings(funding))


def funding_row(entry: Entry, funding: Funding, entry_hash: EntryHash) -> dict[str, Any]:
    ask = funding.ask
    return plain_row(
        entry,
        entry_hash,
        request_id=FUNDING_PREFIX + ask.funding_id,
        tenant_id=ask.tenant_id,
        end_time_ns=funding.time_ns,
        kind=ask.kind.value,
    )


def check_funding(ask: FundingAsk) -> None:
    """Raises FundingRefusedError for what no ledger takes."""
    for name, text in (
        ("funding_id", ask.funding_id),
        ("tenant_id", ask.tenant_id),
        ("reason", ask.reason),
        ("operator", ask.operator),
    ):
        if not text or len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
            raise FundingRefusedError(f"{name} must be said, in printable characters")
    currency = ask.currency
    if not 0 < len(currency) <= CURRENCY_CHARACTERS_MAX or not currency.isprintable():
        raise FundingRefusedError("name the currency, as the price book does")
    if ask.amount <= 0:
        raise FundingRefusedError("name an amount above 0")
    if ask.expires_ns is None:
        return
    if ask.kind is not FundingKind.GRANT:
        raise FundingRefusedError("only a grant has an end")
    if not 0 < ask.expires_ns <= TIME_NS_MAX:
        raise FundingRefusedError("a grant's end lies between the years 1970 and 2262")


def _again(position: int, found: Funding, ask: FundingAsk, head: Head) -> Funded:
    if replace(ask, operator=found.ask.operator) != found.ask:
        raise FundingConflictError(
            f'funding "{ask.funding_id}" is in the ledger already and says something else; give a'
            " new one another id",
            position=position,
        )
    return Funded(position, found, head, again=True)
