"""The intake of attestations: each is kept once for ever, by its id.

    known, same content     DUPLICATE
    known, other content    CONFLICT     kept aside; the first one stands
    not acceptable          REJECTED     kept aside
    else                    ACCEPTED

Runs on the ledger's writer thread, in a transaction of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from billing.attestation import (
    Attestation,
    AttestationRefusal,
    attestation_text,
    refusal_of_attestation,
)
from billing.ledger_rows import insert_rows
from billing.ledger_schema import attestations, refused_attestations
from billing.meter import RecordStatus
from billing.refusals import refusal_hash, storable

__all__ = ["AttestationOutcome", "AttestationSubmission", "keep_attestations"]

LOOKUP_MAX = 900


@dataclass(frozen=True, slots=True)
class AttestationSubmission:
    """One as it came in."""

    said: Attestation
    wire: bytes
    """As received, with fields that this version does not know."""


@dataclass(frozen=True, slots=True)
class AttestationOutcome:
    attestation_id: str
    status: RecordStatus
    reason: str = ""


def keep_attestations(
    connection: Connection, submissions: Sequence[AttestationSubmission], now_ns: int
) -> list[AttestationOutcome]:
    """Outcomes in the order of `submissions`; nothing is durable before the commit."""
    known = _known(connection, [each.said.attestation_id for each in submissions])
    rows: list[dict[str, Any]] = []
    refused: dict[bytes, dict[str, Any]] = {}
    outcomes = []
    for submission in submissions:
        said = submission.said
        refusal = refusal_of_attestation(said)
        status = RecordStatus.REJECTED
        if refusal is None:
            text = attestation_text(said)
            first = known.setdefault(said.attestation_id, text)
            if first is text:
                rows.append(_row(said, text, now_ns))
                outcomes.append(AttestationOutcome(said.attestation_id, RecordStatus.ACCEPTED))
                continue
            if first == text:
                outcomes.append(AttestationOutcome(said.attestation_id, RecordStatus.DUPLICATE))
                continue
            refusal, status = AttestationRefusal.OTHER_CONTENT, RecordStatus.CONFLICT
        content_hash = refusal_hash(refusal.value, submission.wire)
        refused[content_hash] = {
            "content_hash": content_hash,
            "attestation_id": storable(said.attestation_id),
            "reason": refusal.value,
            "received_time_ns": now_ns,
            "wire": submission.wire,
        }
        outcomes.append(AttestationOutcome(said.attestation_id, status, refusal.value))
    _insert(connection, rows, refused)
    return outcomes


def _known(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Texts by id, of those that are kept."""
    table = attestations.c
    found: dict[str, str] = {}
    asked = sorted({name for name in names if "\x00" not in name})
    for start in range(0, len(asked), LOOKUP_MAX):
        some = asked[start : start + LOOKUP_MAX]
        query = select(table.attestation_id, table.content).where(table.attestation_id.in_(some))
        found |= {row.attestation_id: row.content for row in connection.execute(query)}
    return found


def _row(said: Attestation, text: str, now_ns: int) -> dict[str, Any]:
    lease, storage = said.lease, said.storage
    return {
        "attestation_id": said.attestation_id,
        "kind": "storage" if storage is not None else "gap" if lease is None else "lease",
        "request_id": lease.request_id if lease is not None else "",
        "tenant_id": storage.tenant_id if storage else lease.tenant_id if lease else "",
        "node": said.node,
        "start_time_ns": said.start_time_ns,
        "end_time_ns": said.end_time_ns,
        "content": text,
        "recorded_time_ns": now_ns,
    }


def _insert(
    connection: Connection, rows: list[dict[str, Any]], refused: dict[bytes, dict[str, Any]]
) -> None:
    if rows:
        insert_rows(connection, attestations, rows)
    table = refused_attestations.c
    names = list(refused)
    for start in range(0, len(names), LOOKUP_MAX):
        some = names[start : start + LOOKUP_MAX]
        query = select(table.content_hash).where(table.content_hash.in_(some))
        for kept in connection.execute(query).scalars():
            del refused[bytes(kept)]
    if refused:
        insert_rows(connection, refused_attestations, list(refused.values()))
