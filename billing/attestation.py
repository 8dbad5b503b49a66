"""Attestations: what cache services say that each lease served. Kept beside the ledger as received.

Invariant: equal content gives equal text for ever, so that one that is sent again is known.
`refusal_of_attestation` is pure. Frozen data, any thread.
"""

import json
from dataclasses import asdict, astuple, dataclass
from enum import Enum
from typing import Any

__all__ = [
    "Attestation",
    "Blocks",
    "GapSaid",
    "LeaseSaid",
    "attestation_from_text",
    "attestation_text",
    "refusal_of_attestation",
]

SCHEMA_VERSION = 1
TEXT_CHARACTERS_MAX = 1024
BLOCKS_MAX = 10**9
TIME_NS_MAX = 2**62
LEASE_ENDS = (
    "RELEASED",
    "NOTHING_READY",
    "ABANDONED",
    "EXPIRED",
    "SESSION_CLOSED",
    "SESSION_EXPIRED",
    "STOPPED",
    "LOST",
)
GAP_REASONS = ("KILLED", "UNWRITTEN")


class AttestationRefusal(Enum):
    """Why one is kept aside. Values go over the wire: frozen."""

    MISSING_ID = "MISSING_ID"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    INVALID_TEXT = "INVALID_TEXT"
    UNKNOWN_KIND = "UNKNOWN_KIND"
    TIME_RANGE = "TIME_RANGE"
    QUANTITY_RANGE = "QUANTITY_RANGE"
    SERVED_MORE_THAN_GRANTED = "SERVED_MORE_THAN_GRANTED"
    OTHER_CONTENT = "OTHER_CONTENT"


@dataclass(frozen=True, slots=True)
class Blocks:
    """By the tier they were in when the lease was given."""

    host: int
    ssd: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class LeaseSaid:
    """What one lease served."""

    request_id: str
    client_name: str
    session_id: str
    owner: str
    """Path of a scope, organisation first; empty: nobody's."""
    namespace: str
    """Hexadecimal."""
    block_tokens: int
    end: str
    """One of LEASE_ENDS."""
    granted: Blocks
    served: Blocks | None
    """None: the service died; any part of what was granted."""
    corrupt_blocks: int

    @property
    def tenant_id(self) -> str:
        """Empty: nobody's."""
        return self.owner.partition("/")[0]


@dataclass(frozen=True, slots=True)
class GapSaid:
    """A time of which a service cannot attest everything."""

    reason: str
    """One of GAP_REASONS."""
    lease_count: int | None


@dataclass(frozen=True, slots=True)
class Attestation:
    """Exactly one of lease and gap. Times: nanoseconds since 1970 UTC."""

    attestation_id: str
    schema_version: int
    node: str
    instance_id: str
    start_time_ns: int
    end_time_ns: int
    lease: LeaseSaid | None = None
    gap: GapSaid | None = None


def attestation_text(said: Attestation) -> str:
    """Canonical: keys in alphabetical order, no spaces; "shared" only where it is not 0. Frozen."""
    fields = asdict(said)
    for blocks in ("granted", "served") if said.lease is not None else ():
        if fields["lease"][blocks] is not None and not fields["lease"][blocks]["shared"]:
            del fields["lease"][blocks]["shared"]
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def attestation_from_text(text: str) -> Attestation:
    """Inverse of `attestation_text`. Raises ValueError, KeyError, TypeError for other text."""
    fields: dict[str, Any] = json.loads(text)
    lease, gap = fields.pop("lease"), fields.pop("gap")
    if lease is not None:
        for name in ("granted", "served"):
            lease[name] = None if lease[name] is None else Blocks(**lease[name])
        lease = LeaseSaid(**lease)
    return Attestation(**fields, lease=lease, gap=None if gap is None else GapSaid(**gap))


def refusal_of_attestation(said: Attestation) -> AttestationRefusal | None:
    """Why it cannot be kept as it is, or None."""
    if not said.attestation_id:
        return AttestationRefusal.MISSING_ID
    if said.schema_version != SCHEMA_VERSION:
        return AttestationRefusal.UNKNOWN_SCHEMA
    texts = [said.attestation_id, said.node, said.instance_id]
    if said.lease is not None:
        lease = said.lease
        texts += [lease.request_id, lease.client_name, lease.session_id, lease.owner]
    if any(len(text) > TEXT_CHARACTERS_MAX or not text.isprintable() for text in texts):
        return AttestationRefusal.INVALID_TEXT
    if not 0 <= said.start_time_ns <= said.end_time_ns < TIME_NS_MAX:
        return AttestationRefusal.TIME_RANGE
    if said.lease is not None:
        return _lease_refusal(said.lease)
    if said.gap is None or said.gap.reason not in GAP_REASONS:
        return AttestationRefusal.UNKNOWN_KIND
    if not 0 <= (said.gap.lease_count or 0) < BLOCKS_MAX:
        return AttestationRefusal.QUANTITY_RANGE
    return None


def _lease_refusal(lease: LeaseSaid) -> AttestationRefusal | None:
    if lease.end not in LEASE_ENDS:
        return AttestationRefusal.UNKNOWN_KIND
    served = lease.served or Blocks(0, 0)
    granted = lease.granted
    counts = (*astuple(granted), *astuple(served), lease.corrupt_blocks)
    if min(counts) < 0 or max(counts) > BLOCKS_MAX or not 0 < lease.block_tokens <= BLOCKS_MAX:
        return AttestationRefusal.QUANTITY_RANGE
    if any(some > all_ for some, all_ in zip(astuple(served), astuple(granted), strict=True)):
        return AttestationRefusal.SERVED_MORE_THAN_GRANTED
    return None
