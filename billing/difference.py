"""Differences between engine, cache, ledger and invoice: what each kind is, and its words.

    engine     what the usage event says, hits by tier
    cache      what the cache services attest that the event's leases served
    ledger     what was posted for it
    invoice    what statements of the period say

Invariant: a difference that a sound system shows too is explained, and says why; every other one is
unexplained. Kinds go over the wire: frozen. Frozen data and pure functions, any thread.
"""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Difference", "Kind"]


class Kind(Enum):
    """What differs."""

    HITS_NOT_SERVED = "HITS_NOT_SERVED"
    RESTORED_NOT_USED = "RESTORED_NOT_USED"
    LEASE_LOST = "LEASE_LOST"
    LEASES_UNSAID = "LEASES_UNSAID"
    LEASES_CUT = "LEASES_CUT"
    ATTESTATION_MISSING = "ATTESTATION_MISSING"
    ATTESTATION_IN_GAP = "ATTESTATION_IN_GAP"
    ATTESTATION_PENDING = "ATTESTATION_PENDING"
    ATTESTATION_CONFLICT = "ATTESTATION_CONFLICT"
    LEASE_OF_OTHER_REQUEST = "LEASE_OF_OTHER_REQUEST"
    LEASE_OF_OTHER_TENANT = "LEASE_OF_OTHER_TENANT"
    LEASE_NOT_NAMED = "LEASE_NOT_NAMED"
    LEASE_AFTER_END = "LEASE_AFTER_END"
    LEASE_OF_LOST_REQUEST = "LEASE_OF_LOST_REQUEST"
    EVENT_MISSING = "EVENT_MISSING"
    EVENT_PENDING = "EVENT_PENDING"
    EVENT_REFUSED = "EVENT_REFUSED"
    CHARGED_BY_RULE = "CHARGED_BY_RULE"
    UNRATED = "UNRATED"
    POSTINGS_DIFFER = "POSTINGS_DIFFER"
    COLUMNS_DIFFER = "COLUMNS_DIFFER"
    STATEMENT_DIFFERS = "STATEMENT_DIFFERS"

    @property
    def explained(self) -> bool:
        return self in _EXPLAINED


_EXPLAINED = frozenset(
    {
        Kind.RESTORED_NOT_USED,
        Kind.LEASE_LOST,
        Kind.LEASES_UNSAID,
        Kind.LEASES_CUT,
        Kind.ATTESTATION_IN_GAP,
        Kind.ATTESTATION_PENDING,
        Kind.LEASE_AFTER_END,
        Kind.LEASE_OF_LOST_REQUEST,
        Kind.EVENT_PENDING,
        Kind.CHARGED_BY_RULE,
        Kind.UNRATED,
    }
)


@dataclass(frozen=True, slots=True)
class Difference:
    kind: Kind
    explanation: str
    """For people."""
    tenant_id: str = ""
    request_id: str = ""
    lease_id: str = ""
    subject: str = ""
    """What is compared: "host", "ssd", "shared", "miss"."""
    expected: int | None = None
    found: int | None = None
    """Tokens, where the kind does not say otherwise."""
