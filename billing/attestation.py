"""Attestations: what cache services say that each lease served, and what they kept stored. Kept
beside the ledger as received.

Invariant: equal content gives equal text for ever, so that one that is sent again is known.
`refusal_of_attestation` is pure. Frozen data, any thread.
"""

import json
from dataclasses import asdict, astuple, dataclass
from enum import Enum
from typing import Any

from billing.period import HOUR_NS

__all__ = [
    "Attestation",
    "Blocks",
    "GapSaid",
    "LeaseSaid",
    "StorageSaid",
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
STORAGE_TIERS = ("host", "ssd")
STORED_TOKENS_MAX = 10**12
_MILLISECOND_NS = 10**6


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
class StorageSaid:
    """What was kept of an organisation and model in one tier, from the attestation's start to its
    end, which lie in one hour of the clock."""

    tenant_id: str
    model: str
    tier: str
    """One of STORAGE_TIERS."""
    token_milliseconds: int
    maximum_tokens: int
    """The most that were kept at a time."""
    started_tokens: int
    """Tokens x hours of their own that began."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """Exactly one of lease, gap and storage. Times: nanoseconds since 1970 UTC."""

    attestation_id: str
    schema_version: int
    node: str
    instance_id: str
    start_time_ns: int
    end_time_ns: int
    lease: LeaseSaid | None = None
    gap: GapSaid | None = None
    storage: StorageSaid | None = None


def attestation_text(said: Attestation) -> str:
    """Canonical: keys in alphabetical order, no spaces; "shared" only where it is not 0,
    "storage" only of storage. Frozen.
    """
    fields = asdict(said)
    if said.storage is None:
        del fields["storage"]
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
    storage = fields.pop("storage", None)
    return Attestation(
        **fields,
        lease=lease,
        gap=None if gap is None else GapSaid(**gap),
        storage=None if storage is None else StorageSaid(**storage),
    )


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
    if said.storage is not None:
        texts += [said.storage.tenant_id, said.storage.model]
    if any(len(text) > TEXT_CHARACTERS_MAX or not text.isprintable() for text in texts):
        return AttestationRefusal.INVALID_TEXT
    if not 0 <= said.start_time_ns <= said.end_time_ns < TIME_NS_MAX:
        return AttestationRefusal.TIME_RANGE
    if said.lease is not None:
        return _lease_refusal(said.lease)
    if said.storage is not None:
        return _storage_refusal(said, said.storage)
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


def _storage_refusal(said: Attestation, storage: StorageSaid) -> AttestationRefusal | None:
    if not storage.tenant_id or not storage.model or said.attestation_id.startswith("correction/"):
        return AttestationRefusal.MISSING_ID
    if storage.tier not in STORAGE_TIERS:
        return AttestationRefusal.UNKNOWN_KIND
    hours = {
        said.start_time_ns // HOUR_NS,
        max(said.start_time_ns, said.end_time_ns - 1) // HOUR_NS,
    }
    if len(hours) > 1:
        return AttestationRefusal.TIME_RANGE
    milliseconds = -(-(said.end_time_ns - said.start_time_ns) // _MILLISECOND_NS)
    counts = (storage.token_milliseconds, storage.maximum_tokens, storage.started_tokens)
    # One more: what was cut off the one before is in it.
    most = storage.maximum_tokens * milliseconds + 1
    if min(counts) < 0 or storage.maximum_tokens > STORED_TOKENS_MAX:
        return AttestationRefusal.QUANTITY_RANGE
    if storage.token_milliseconds > most or storage.started_tokens > STORED_TOKENS_MAX:
        return AttestationRefusal.QUANTITY_RANGE
    return None
