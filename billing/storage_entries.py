"""Storage as entries of the ledger: what cache services kept, each attestation once, for ever.

`enter_storage` runs in the writer's transaction, on its thread; the rest is pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from billing.attestation import Attestation, attestation_text
from billing.entry import Entry, EntryHash
from billing.ledger_rows import insert_rows
from billing.ledger_schema import entries, postings, price_versions
from billing.meter import Head, plain_row, posting_rows
from billing.price_book import PriceBook, PriceId, PriceVersion
from billing.standing import Standing
from billing.storage_rating import STORAGE_KIND, storage_postings

__all__ = ["StorageMade", "enter_storage", "storage_entry", "storage_row"]


STORAGE_PREFIX = "storage\n"
"""Begins what stands for a request's id in the entry: no event's id has an unprintable letter."""


@dataclass(frozen=True, slots=True)
class StorageMade:
    head: Head
    """After the entries."""
    new_prices: frozenset[PriceId]


def enter_storage(
    connection: Connection,
    head: Head,
    book: PriceBook,
    stored_prices: frozenset[PriceId],
    standing: Standing,
    accepted: Sequence[Attestation],
    now_ns: int,
) -> StorageMade:
    """An entry for each of them that is storage. REQUIRES: none has one."""
    new_prices: dict[PriceId, PriceVersion] = {}
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for said in accepted:
        if said.storage is None:
            continue
        version = book.version_for(said.start_time_ns, said.storage.model)
        if version is not None and version.id not in stored_prices:
            new_prices[version.id] = version
        entry = storage_entry(said, head.position + 1, now_ns, version)
        head = replace(head, position=entry.position, hash=entry.hash_after(head.hash))
        rows.append(storage_row(entry, said, head.hash))
        lines += posting_rows(entry.position, entry.postings)
        if entry.postings:
            owed = entry.postings[0]
            standing.stored(said.storage.tenant_id, owed, said.start_time_ns, now_ns)
    versions = [{"price_id": v.id, "name": v.name, "text": v.text} for v in new_prices.values()]
    for table, some in ((price_versions, versions), (entries, rows), (postings, lines)):
        if some:
            insert_rows(connection, table, some)
    return StorageMade(head, frozenset(new_prices))


def storage_entry(
    said: Attestation, position: int, recorded_time_ns: int, version: PriceVersion | None
) -> Entry:
    made = storage_postings(said, version)
    price_id = version.id if version is not None else None
    return Entry(position, recorded_time_ns, attestation_text(said), price_id, made)


def storage_row(entry: Entry, said: Attestation, entry_hash: EntryHash) -> dict[str, Any]:
    assert said.storage is not None
    return plain_row(
        entry,
        entry_hash,
        request_id=STORAGE_PREFIX + said.attestation_id,
        tenant_id=said.storage.tenant_id,
        model=said.storage.model,
        end_time_ns=said.start_time_ns,
        kind=STORAGE_KIND,
    )
