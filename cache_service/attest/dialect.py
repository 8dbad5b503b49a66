"""The attestation journal's own keys, as drawn in `docs/formats/attestation_journal.md`. Pure."""

from typing import Any

from cache_service.attest.attestation import (
    SCHEMA_VERSION,
    Attested,
    Gap,
    GapReason,
    LeaseAttestation,
    LeaseEnd,
    LeaseGrant,
    StorageUse,
    TierBlocks,
    lose_lease,
)
from cache_service.errors import AttestationFailedError
from journal.dialect import Dialect
from journal.format import JournalFormat, integer_of, text_of
from kvtier.blocks import Tier

__all__ = ["ATTESTATION_FORMAT", "FORMAT_VERSION", "Begun"]

FORMAT_VERSION = 2
"""Frozen: stored in every segment. Format 1 had no storage."""

Begun = LeaseGrant | Gap | StorageUse
"""A gap is known whole when it is written: it begins and ends at once. Storage begins as often as
it is noted, each time with what there is until then."""


def _grant_fields(grant: LeaseGrant) -> dict[str, Any]:
    return {
        "lease_id": grant.lease_id,
        "request_id": grant.request_id,
        "client_name": grant.client_name,
        "session_id": grant.session_id,
        "node": grant.node,
        "instance_id": grant.instance_id,
        "owner": grant.owner,
        "namespace_id": grant.namespace_id.hex(),
        "block_tokens": grant.block_tokens,
        "start_time_ns": grant.start_time_ns,
        "granted": _tier_fields(grant.granted),
    }


def _grant(fields: dict[str, Any]) -> LeaseGrant:
    return LeaseGrant(
        lease_id=text_of(fields["lease_id"]),
        request_id=text_of(fields["request_id"]),
        client_name=text_of(fields["client_name"]),
        session_id=text_of(fields["session_id"]),
        node=text_of(fields["node"]),
        instance_id=text_of(fields["instance_id"]),
        owner=text_of(fields["owner"]),
        namespace_id=bytes.fromhex(fields["namespace_id"]),
        block_tokens=integer_of(fields["block_tokens"]),
        start_time_ns=integer_of(fields["start_time_ns"]),
        granted=_tiers(fields["granted"]),
    )


def _tier_fields(blocks: TierBlocks) -> dict[str, int]:
    fields = {"host": blocks.host, "ssd": blocks.ssd}
    # Absent where there is none, as it was before there was a shared tier.
    return fields | {"shared": blocks.shared} if blocks.shared else fields


def _tiers(fields: dict[str, Any]) -> TierBlocks:
    shared = integer_of(fields["shared"]) if "shared" in fields else 0
    return TierBlocks(integer_of(fields["host"]), integer_of(fields["ssd"]), shared)


def _storage_fields(use: StorageUse) -> dict[str, Any]:
    return {
        "attestation_id": use.attestation_id,
        "node": use.node,
        "instance_id": use.instance_id,
        "tenant_id": use.tenant_id,
        "model": use.model,
        "tier": use.tier.name.lower(),
        "start_time_ns": use.start_time_ns,
        "end_time_ns": use.end_time_ns,
        "token_milliseconds": use.token_milliseconds,
        "maximum_tokens": use.maximum_tokens,
        "started_tokens": use.started_tokens,
    }


def _storage(fields: dict[str, Any]) -> StorageUse:
    return StorageUse(
        attestation_id=text_of(fields["attestation_id"]),
        node=text_of(fields["node"]),
        instance_id=text_of(fields["instance_id"]),
        tenant_id=text_of(fields["tenant_id"]),
        model=text_of(fields["model"]),
        tier=Tier[text_of(fields["tier"]).upper()],
        start_time_ns=integer_of(fields["start_time_ns"]),
        end_time_ns=integer_of(fields["end_time_ns"]),
        token_milliseconds=integer_of(fields["token_milliseconds"]),
        maximum_tokens=integer_of(fields["maximum_tokens"]),
        started_tokens=integer_of(fields["started_tokens"]),
    )


def _begin_fields(begun: Begun) -> dict[str, Any]:
    if isinstance(begun, StorageUse):
        return {"storage": _storage_fields(begun)}
    assert isinstance(begun, LeaseGrant), "a gap never stays open"
    return {"lease": _grant_fields(begun)}


def _end_fields(event: Attested) -> dict[str, Any]:
    if isinstance(event, Gap):
        gap = {
            "attestation_id": event.attestation_id,
            "node": event.node,
            "instance_id": event.instance_id,
            "start_time_ns": event.start_time_ns,
            "end_time_ns": event.end_time_ns,
            "reason": int(event.reason),
            "lease_count": event.lease_count,
        }
        return {"schema_version": SCHEMA_VERSION, "gap": gap}
    if isinstance(event, StorageUse):
        return {"schema_version": SCHEMA_VERSION, "storage": _storage_fields(event)}
    return {
        "schema_version": SCHEMA_VERSION,
        "lease": _grant_fields(event.grant),
        "end_time_ns": event.end_time_ns,
        "end": int(event.end),
        "served": None if event.served is None else _tier_fields(event.served),
        "corrupt_blocks": event.corrupt_blocks,
    }


def _attested(fields: dict[str, Any]) -> Attested:
    if integer_of(fields["schema_version"]) != SCHEMA_VERSION:
        raise ValueError("an attestation of another schema")
    if "gap" in fields:
        gap = fields["gap"]
        count = gap["lease_count"]
        return Gap(
            attestation_id=text_of(gap["attestation_id"]),
            node=text_of(gap["node"]),
            instance_id=text_of(gap["instance_id"]),
            start_time_ns=integer_of(gap["start_time_ns"]),
            end_time_ns=integer_of(gap["end_time_ns"]),
            reason=GapReason(gap["reason"]),
            lease_count=None if count is None else integer_of(count),
        )
    if "storage" in fields:
        return _storage(fields["storage"])
    return LeaseAttestation(
        grant=_grant(fields["lease"]),
        end_time_ns=integer_of(fields["end_time_ns"]),
        end=LeaseEnd(fields["end"]),
        served=None if fields["served"] is None else _tiers(fields["served"]),
        corrupt_blocks=integer_of(fields["corrupt_blocks"]),
    )


def _read_begin(fields: dict[str, Any]) -> Begun:
    return _storage(fields["storage"]) if "storage" in fields else _grant(fields["lease"])


def _lost(begun: Begun, now_ns: int) -> Attested:
    if isinstance(begun, StorageUse):
        return begun  # What was noted last: no more is known.
    assert isinstance(begun, LeaseGrant), "a gap never stays open"
    return lose_lease(begun, now_ns)


ATTESTATION_FORMAT: JournalFormat[Begun, Attested] = JournalFormat(
    Dialect(
        noun="attestation journal",
        holder="cache service",
        file_prefix="attestations-",
        format_version=FORMAT_VERSION,
        begin_fields=_begin_fields,
        read_begin=_read_begin,
        end_fields=_end_fields,
        read_end=_attested,
        name=lambda begun: begun.attestation_id,
        subject=lambda event: event.grant if isinstance(event, LeaseAttestation) else event,
        lost=_lost,
        # It is true whenever it is written.
        unwritten=lambda event, now_ns: event,
        failure=AttestationFailedError,
        syncs_begins=True,
    )
)
