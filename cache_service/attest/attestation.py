"""Attestations: what one lease served, what was kept stored, and gaps of which nothing can be said.
Frozen data.

Invariant: what was served is a part of what was granted. An attestation holds no block hash, no
prompt and no price. Any thread.
"""

from dataclasses import dataclass
from enum import IntEnum

from kvtier.blocks import Tier

__all__ = [
    "SCHEMA_VERSION",
    "Attested",
    "Gap",
    "GapReason",
    "LeaseAttestation",
    "LeaseEnd",
    "LeaseGrant",
    "StorageUse",
    "TierBlocks",
    "lose_lease",
]

SCHEMA_VERSION = 1
"""Goes to billing and into the journal. Frozen once released."""


class LeaseEnd(IntEnum):
    """What ended a lease. The numbers are those of `kvtier/v1/attestation.proto`, frozen."""

    RELEASED = 1
    NOTHING_READY = 2
    ABANDONED = 3
    EXPIRED = 4
    SESSION_CLOSED = 5
    SESSION_EXPIRED = 6
    STOPPED = 7
    LOST = 8


class GapReason(IntEnum):
    """The numbers are those of the contract, frozen."""

    KILLED = 1
    UNWRITTEN = 2


@dataclass(frozen=True, slots=True)
class TierBlocks:
    """Blocks by the tier they were in when the lease was given."""

    host: int
    ssd: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A lease as it was given. Times: wall clock, nanoseconds since 1970."""

    lease_id: str
    request_id: str
    client_name: str
    session_id: str
    node: str
    instance_id: str
    owner: str
    """Of its deepest block; empty: nobody's."""
    namespace_id: bytes
    block_tokens: int
    start_time_ns: int
    granted: TierBlocks

    @property
    def attestation_id(self) -> str:
        return self.lease_id


@dataclass(frozen=True, slots=True)
class LeaseAttestation:
    """What it served."""

    grant: LeaseGrant
    end_time_ns: int
    end: LeaseEnd
    served: TierBlocks | None
    """None: the service died, so any part of what was granted."""
    corrupt_blocks: int = 0

    @property
    def attestation_id(self) -> str:
        return self.grant.lease_id


@dataclass(frozen=True, slots=True)
class Gap:
    """A time of which the service cannot attest everything."""

    attestation_id: str
    node: str
    instance_id: str
    """Of the run that has the gap."""
    start_time_ns: int
    end_time_ns: int
    reason: GapReason
    lease_count: int | None = None
    """Leases that are in no attestation because of it; None: nobody counted."""


@dataclass(frozen=True, slots=True)
class StorageUse:
    """What was kept of an organisation and model in one tier, within one hour of UTC."""

    attestation_id: str
    node: str
    instance_id: str
    tenant_id: str
    model: str
    tier: Tier
    start_time_ns: int
    end_time_ns: int
    token_milliseconds: int
    maximum_tokens: int
    started_tokens: int


Attested = LeaseAttestation | Gap | StorageUse
"""What is delivered."""


def lose_lease(grant: LeaseGrant, now_ns: int) -> LeaseAttestation:
    """Of one that was open when its service died."""
    return LeaseAttestation(grant, max(now_ns, grant.start_time_ns), LeaseEnd.LOST, None)
