"""What contradicts what is kept, or makes no sense: refused events and attestations, by page.

Invariant: every row of the period is told, or, for a tenant, each whose message names it. Reads the
caller's snapshot.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import Connection, Table, select

from billing.difference import Difference, Kind
from billing.ledger_schema import refused_attestations, refused_events
from billing.period import Period
from kvtier.v1 import attestation_pb2, usage_pb2

__all__ = ["kept_aside"]


@dataclass(frozen=True, slots=True)
class _Sort:
    table: Table
    name: str
    """Of the column that names the row."""
    kind: Kind
    words: str
    tenant_of: Callable[[bytes], str]


def kept_aside(
    connection: Connection, period: Period, tenant_id: str, page: int
) -> Iterator[list[Difference]]:
    """`page` rows are looked at together. The period is that in which they came."""
    for sort in _SORTS:
        for rows in _pages(connection, sort, period, page):
            found = [_difference(sort, row) for row in rows]
            yield [each for each in found if not tenant_id or each.tenant_id == tenant_id]


def _pages(
    connection: Connection, sort: _Sort, period: Period, page: int
) -> Iterator[Sequence[Any]]:
    columns, last = sort.table.c, b""
    wanted = (columns.content_hash, columns[sort.name], columns.reason, columns.wire)
    while True:
        query = select(*wanted).where(columns.content_hash > last)
        if period.start_ns is not None:
            query = query.where(columns.received_time_ns >= period.start_ns)
        if period.end_ns is not None:
            query = query.where(columns.received_time_ns < period.end_ns)
        rows = connection.execute(query.order_by(columns.content_hash).limit(page)).all()
        if not rows:
            return
        yield rows
        last = bytes(rows[-1].content_hash)


def _difference(sort: _Sort, row: Any) -> Difference:
    text = f"{sort.words} was kept aside ({row.reason}): it is in no figure, and says otherwise"
    try:
        tenant_id = sort.tenant_of(bytes(row.wire))
    except DecodeError:
        tenant_id = ""
    name = getattr(row, sort.name)
    request, lease = (name, "") if sort.name == "request_id" else ("", name)
    return Difference(sort.kind, text, tenant_id, request, lease)


def _tenant_of_event(wire: bytes) -> str:
    return usage_pb2.UsageEvent.FromString(wire).tenant_id


def _tenant_of_attestation(wire: bytes) -> str:
    """Of the lease's owner: a path of a scope, organisation first."""
    return attestation_pb2.Attestation.FromString(wire).lease.owner.partition("/")[0]


_SORTS = (
    _Sort(refused_events, "request_id", Kind.EVENT_REFUSED, "a usage event", _tenant_of_event),
    _Sort(
        refused_attestations,
        "attestation_id",
        Kind.ATTESTATION_CONFLICT,
        "an attestation",
        _tenant_of_attestation,
    ),
)
