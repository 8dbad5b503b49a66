"""Attestations as messages of `kvtier.v1`, and on their way to billing. Pure but for the call."""

from collections.abc import Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cache_service.attest.attestation import (
    SCHEMA_VERSION,
    Attested,
    Gap,
    LeaseAttestation,
    StorageUse,
    TierBlocks,
)
from journal.delivery import BillingAnswerError, Verdict
from journal.format import StoredEnd
from kvtier.v1 import attestation_pb2 as pb
from kvtier.v1 import attestation_pb2_grpc, usage_pb2

__all__ = ["AttestationCourier", "attestation_message"]


class AttestationCourier:
    """Speaks to `RecordAttestations`."""

    def fitting(self, ends: Sequence[StoredEnd[Attested]]) -> Sequence[StoredEnd[Attested]]:
        return ends

    async def carry(
        self,
        channel: grpc.aio.Channel,
        ends: Sequence[StoredEnd[Attested]],
        timeout_seconds: float,
    ) -> Sequence[Verdict]:
        events = [end.event for end in ends]
        response = await attestation_pb2_grpc.AttestationServiceStub(channel).RecordAttestations(
            pb.RecordAttestationsRequest(attestations=map(attestation_message, events)),
            timeout=timeout_seconds,
        )
        if response is None:  # gRPC's way of telling an OK without its message
            raise BillingAnswerError("billing said OK without an answer")
        outcomes = response.outcomes
        if [o.attestation_id for o in outcomes] != [e.attestation_id for e in events]:
            raise BillingAnswerError("billing's outcomes are not those of what was sent")
        return [_verdict(outcome) for outcome in outcomes]


def _verdict(outcome: pb.AttestationOutcome) -> Verdict:
    status = usage_pb2.RecordStatus.Name(outcome.status)
    return Verdict(status.removeprefix("RECORD_STATUS_"), outcome.reason)


def attestation_message(event: Attested) -> pb.Attestation:
    who = event.grant if isinstance(event, LeaseAttestation) else event
    message = pb.Attestation(
        attestation_id=event.attestation_id,
        schema_version=SCHEMA_VERSION,
        node=who.node,
        instance_id=who.instance_id,
    )
    if isinstance(event, Gap):
        message.gap.CopyFrom(_gap_message(event))
    elif isinstance(event, StorageUse):
        message.storage.CopyFrom(_storage_message(event))
    else:
        message.lease.CopyFrom(_lease_message(event))
    return message


def _gap_message(gap: Gap) -> pb.AttestationGap:
    return pb.AttestationGap(
        start_time=_timestamp(gap.start_time_ns),
        end_time=_timestamp(gap.end_time_ns),
        reason=pb.GapReason.Name(int(gap.reason)),
        lease_count=gap.lease_count,
    )


def _storage_message(use: StorageUse) -> pb.StorageAttestation:
    return pb.StorageAttestation(
        tenant_id=use.tenant_id,
        model=use.model,
        tier=f"TIER_{use.tier.name}",
        start_time=_timestamp(use.start_time_ns),
        end_time=_timestamp(use.end_time_ns),
        token_milliseconds=use.token_milliseconds,
        maximum_tokens=use.maximum_tokens,
        started_tokens=use.started_tokens,
    )


def _lease_message(event: LeaseAttestation) -> pb.LeaseAttestation:
    grant = event.grant
    return pb.LeaseAttestation(
        request_id=grant.request_id,
        client_name=grant.client_name,
        session_id=grant.session_id,
        owner=grant.owner,
        namespace_id=grant.namespace_id,
        block_tokens=grant.block_tokens,
        start_time=_timestamp(grant.start_time_ns),
        end_time=_timestamp(event.end_time_ns),
        end=pb.LeaseEnd.Name(int(event.end)),
        granted=_tiers(grant.granted),
        served=None if event.served is None else _tiers(event.served),
        corrupt_blocks=event.corrupt_blocks,
    )


def _tiers(blocks: TierBlocks) -> pb.TierBlocks:
    return pb.TierBlocks(host=blocks.host, ssd=blocks.ssd, shared=blocks.shared)


def _timestamp(nanoseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(nanoseconds)
    return made
