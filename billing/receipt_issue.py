"""Issues receipts: what the ledger has of a request, as data to be signed.

Reads one snapshot on a reader's thread; the ledger's writer, which signs, brings it up to the time
that it signs at. Invariant: a receipt has every correction recorded until it was issued.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from billing.checkpoint import LedgerKey
from billing.correction import correction_from_text
from billing.entry import genesis_hash
from billing.errors import ReceiptAmbiguousError
from billing.ledger_lookup import FoundEntry, found_entries
from billing.ledger_schema import entries, ledger_meta, price_versions
from billing.money import EXACT, to_text
from billing.price_book import PriceVersion, version_from_text
from billing.rating import facts_of, rated_lines
from billing.receipt import FORMAT, line_fields, marks_of
from billing.usage import event_text

__all__ = ["brought_up", "draft_of", "receipt_of"]

Draft = dict[str, Any]
"""What a receipt says but for who signs it, and when."""


def draft_of(connection: Connection, name: str, tenant_id: str, project_id: str) -> Draft:
    """Of the request named `name`, by itself or by its client.

    Raises EventUnknownError, ReceiptAmbiguousError.
    """
    found = found_entries(connection, name, tenant_id, project_id)
    if found[0].event.request_id != name and len(found) > 1:
        raise ReceiptAmbiguousError(
            f"{len(found)} requests or more have that name from their clients; name one by its"
            " request id, which `kvtier usage show` tells",
            request_id=found[0].event.request_id,
        )
    return _fields(connection, found[0])


def brought_up(connection: Connection, draft: Draft) -> Draft:
    """With the corrections that have come since; on the ledger's writer."""
    query = select(func.count()).where(entries.c.corrects == draft["entry"]["position"])
    if connection.execute(query).scalar_one() == len(draft["corrections"]):
        return draft
    return draft_of(connection, draft["event"]["request_id"], "", "")


def receipt_of(draft: Draft, keys: Sequence[LedgerKey], now_ns: int) -> dict[str, Any]:
    """To be signed by the last of `keys`."""
    receipt = {
        **draft,
        "format": FORMAT,
        "issued_time_ns": now_ns,
        "key": keys[-1].key_id,
        "keys": [
            {
                "number": key.number,
                "public_key": key.public_key.hex(),
                "signature": key.signature.hex(),
                "time_ns": key.time_ns,
            }
            for key in keys
        ],
    }
    return {**receipt, "marks": marks_of(receipt)}


def _fields(connection: Connection, found: FoundEntry) -> Draft:
    meta = select(ledger_meta.c.value).where(ledger_meta.c.key == "ledger_id")
    ledger_id = connection.execute(meta).scalar_one()
    rows = connection.execute(
        select(entries)
        .where((entries.c.position == found.position) | (entries.c.corrects == found.position))
        .order_by(entries.c.position)
    ).all()
    versions = _versions(connection, [row.price_id for row in rows])
    own = versions.get(rows[0].price_id or "")
    lines = rated_lines(facts_of(found.event), own) if own is not None else ()
    corrections = [
        {**_entry(connection, row, ledger_id), **json.loads(row.event)} for row in rows[1:]
    ]
    owed = found.amount
    for row in rows[1:]:
        owed = EXACT.add(owed, correction_from_text(row.event).amount)
    settled = [correction_from_text(row.event).currency for row in rows[1:]]
    return {
        "amount": to_text(found.amount),
        "corrections": corrections,
        "currency": found.currency or next(filter(None, settled), ""),
        "entry": _entry(connection, rows[0], ledger_id),
        "event": json.loads(event_text(found.event)),
        "ledger": ledger_id,
        "lines": [line_fields(line) for line in lines],
        "owed": to_text(owed),
        "price_versions": [json.loads(version.text) for version in versions.values()],
    }


def _versions(connection: Connection, price_ids: Sequence[str | None]) -> dict[str, PriceVersion]:
    """By id, in the order in which they are named first."""
    wanted = list(dict.fromkeys(each for each in price_ids if each is not None))
    query = select(price_versions).where(price_versions.c.price_id.in_(wanted))
    found = {row.price_id: version_from_text(row.text) for row in connection.execute(query)}
    return {price_id: found[price_id] for price_id in wanted}


def _entry(connection: Connection, row: Any, ledger_id: str) -> dict[str, Any]:
    previous = genesis_hash(ledger_id)
    if row.position > 1:
        before = select(entries.c.hash).where(entries.c.position == row.position - 1)
        previous = connection.execute(before).scalar_one()
    return {
        "hash": bytes(row.hash).hex(),
        "position": row.position,
        "previous_hash": bytes(previous).hex(),
        "price": row.price_id,
        "recorded_time_ns": row.recorded_time_ns,
    }
