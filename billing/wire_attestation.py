"""Attestations and differences as messages of `kvtier.v1`. Pure functions, any thread."""

from billing.attestation import Attestation, Blocks, GapSaid, LeaseSaid, StorageSaid
from billing.attestation_keeping import AttestationOutcome, AttestationSubmission
from billing.difference import Difference
from billing.reconciling import Reconciliation
from billing.usage import TIERS
from kvtier.v1 import attestation_pb2 as pb
from kvtier.v1 import block_pb2, usage_pb2

__all__ = [
    "attestation_outcome_message",
    "attestation_submission_of",
    "difference_message",
    "summary_message",
]

_NONE = -1
"""A time that was not said: refused."""


def attestation_submission_of(message: pb.Attestation) -> AttestationSubmission:
    what = message.WhichOneof("what")
    said = Attestation(
        attestation_id=message.attestation_id,
        schema_version=message.schema_version,
        node=message.node,
        instance_id=message.instance_id,
        start_time_ns=_time(message, what, "start_time"),
        end_time_ns=_time(message, what, "end_time"),
        lease=_lease(message.lease) if what == "lease" else None,
        gap=_gap(message.gap) if what == "gap" else None,
        storage=_storage(message.storage) if what == "storage" else None,
    )
    return AttestationSubmission(said, message.SerializeToString())


def attestation_outcome_message(outcome: AttestationOutcome) -> pb.AttestationOutcome:
    return pb.AttestationOutcome(
        attestation_id=outcome.attestation_id,
        status=f"RECORD_STATUS_{outcome.status.name}",
        reason=outcome.reason,
    )


def difference_message(found: Difference) -> pb.UsageDifference:
    return pb.UsageDifference(
        kind=found.kind.value,
        explained=found.kind.explained,
        tenant_id=found.tenant_id,
        request_id=found.request_id,
        lease_id=found.lease_id,
        subject=found.subject,
        expected=found.expected,
        found=found.found,
        explanation=found.explanation,
    )


def summary_message(walk: Reconciliation) -> pb.ReconcileSummary:
    tokens = walk.tokens
    hits = {tier: tokens[f"hit_{tier}"] for tier in TIERS}
    hit = sum(hits.values())
    return pb.ReconcileSummary(
        request_count=walk.request_count,
        lease_count=walk.lease_count,
        difference_count=walk.difference_count,
        unexplained_count=walk.unexplained_count,
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=hit + tokens["miss"],
            hit_tokens=hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(**hits),
            miss_tokens=tokens["miss"],
            completion_tokens=tokens["output"],
            cache_write_tokens=tokens["cache_write"],
        ),
    )


def _time(message: pb.Attestation, what: str | None, name: str) -> int:
    if what is None:
        return _NONE
    part = getattr(message, what)
    return int(getattr(part, name).ToNanoseconds()) if part.HasField(name) else _NONE


def _lease(message: pb.LeaseAttestation) -> LeaseSaid:
    return LeaseSaid(
        request_id=message.request_id,
        client_name=message.client_name,
        session_id=message.session_id,
        owner=message.owner,
        namespace=message.namespace_id.hex(),
        block_tokens=message.block_tokens,
        end=_name(pb.LeaseEnd, message.end, "LEASE_END_"),
        granted=_blocks(message.granted),
        served=_blocks(message.served) if message.HasField("served") else None,
        corrupt_blocks=message.corrupt_blocks,
    )


def _gap(message: pb.AttestationGap) -> GapSaid:
    return GapSaid(
        reason=_name(pb.GapReason, message.reason, "GAP_REASON_"),
        lease_count=message.lease_count if message.HasField("lease_count") else None,
    )


def _storage(message: pb.StorageAttestation) -> StorageSaid:
    return StorageSaid(
        tenant_id=message.tenant_id,
        model=message.model,
        tier=_name(block_pb2.Tier, message.tier, "TIER_").lower(),
        token_milliseconds=message.token_milliseconds,
        maximum_tokens=message.maximum_tokens,
        started_tokens=message.started_tokens,
    )


def _blocks(message: pb.TierBlocks) -> Blocks:
    return Blocks(message.host, message.ssd, message.shared)


def _name(enum: object, number: int, prefix: str) -> str:
    try:
        return str(enum.Name(number)).removeprefix(prefix)  # type: ignore[attr-defined]
    except ValueError:
        return str(number)  # of a newer service
