"""Usage as messages of `kvtier.v1`, and back. Pure functions, any thread.

Invariant: `event_of` of a message that `event_message` made is the event it was made of; the
journal keeps events so.
"""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.blocks import Tier
from kvtier.v1 import usage_pb2
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)

__all__ = [
    "event_from_bytes",
    "event_message",
    "event_of",
    "timestamp_message",
    "tokens_message",
]

_NS = 10**9
_ENDS = {end: usage_pb2.EndReason.Name(int(end)) for end in UsageEnd}
_COUNTS: dict[Tier | None, str] = {
    Tier.GPU: "gpu_block_count",
    Tier.HOST: "host_block_count",
    Tier.SSD: "ssd_block_count",
    Tier.SHARED: "shared_block_count",
    None: "computed_block_count",
}
_TIERS = (Tier.GPU, Tier.HOST, Tier.SSD, Tier.SHARED)


def tokens_message(tokens: ChargedTokens) -> usage_pb2.TokenUsage:
    return usage_pb2.TokenUsage(**_token_fields(tokens))


def event_message(event: UsageEvent) -> usage_pb2.UsageEvent:
    request, leases, ttft_ns = event.request, event.lease_ids, event.ttft_ns
    # Parts as mappings, which are filled in where they lie: a message would be copied.
    return usage_pb2.UsageEvent(
        request_id=request.request_id,
        schema_version=event.schema_version,
        tenant_id=request.tenant_id,
        model=request.model,
        start_time=_time_fields(request.start_time_ns),
        end_time=_time_fields(event.end_time_ns),
        end_reason=_ENDS[event.end],
        tokens=_token_fields(event.tokens),
        node=request.node,
        client_request_id=request.client_request_id,
        ttft=None if ttft_ns is None else _time_fields(ttft_ns),
        project_id=request.project_id,
        user_id=request.user_id,
        key_id=request.key_id,
        session_id=request.session_id,
        leases=None if leases is None else usage_pb2.LeaseIds(ids=leases),
        # Unset in an event is what an empty one is in a request: none was asked for.
        service_class=request.service_class or None,
        proof=None if event.proof is None else _proof_fields(event.proof),
    )


def event_from_bytes(wire: bytes) -> UsageEvent:
    """Of what `event_message` made, serialized. Raises ValueError for anything else."""
    try:
        return event_of(usage_pb2.UsageEvent.FromString(wire))
    except DecodeError as error:
        raise ValueError(f"no usage event: {error}") from None


def event_of(message: usage_pb2.UsageEvent) -> UsageEvent:
    """Inverse of `event_message`. Raises ValueError for one that no worker makes."""

    def said(name: str) -> str | None:
        return getattr(message, name) if message.HasField(name) else None

    key_id, service_class = said("key_id"), said("service_class")
    if service_class is None and key_id is not None:
        service_class = ""  # who keeps a note of keys keeps one of classes
    return UsageEvent(
        request=AdmittedRequest(
            request_id=message.request_id,
            tenant_id=message.tenant_id,
            model=message.model,
            node=message.node,
            client_request_id=message.client_request_id,
            start_time_ns=_ns(message.start_time),
            project_id=said("project_id"),
            user_id=said("user_id"),
            key_id=key_id,
            session_id=said("session_id"),
            service_class=service_class,
        ),
        end_time_ns=_ns(message.end_time),
        end=UsageEnd(message.end_reason),
        tokens=_tokens_of(message.tokens),
        ttft_ns=_ns(message.ttft) if message.HasField("ttft") else None,
        lease_ids=tuple(message.leases.ids) if message.HasField("leases") else None,
        schema_version=message.schema_version,
        proof=_proof_of(message.proof) if message.HasField("proof") else None,
    )


def timestamp_message(nanoseconds: int) -> Timestamp:
    return Timestamp(**_time_fields(nanoseconds))


def _time_fields(nanoseconds: int) -> dict[str, int]:
    return {"seconds": nanoseconds // _NS, "nanos": nanoseconds % _NS}


def _ns(time: Timestamp | Duration) -> int:
    return time.seconds * _NS + time.nanos


def _token_fields(tokens: ChargedTokens) -> dict[str, Any]:
    hits = tokens.hit_tokens_by_tier
    hit_tokens = tokens.hit_tokens
    return {
        "prompt_tokens": hit_tokens + tokens.miss_tokens,
        "hit_tokens": hit_tokens,
        "hit_tokens_by_tier": {
            "gpu": hits.get(Tier.GPU, 0),
            "host": hits.get(Tier.HOST, 0),
            "ssd": hits.get(Tier.SSD, 0),
            "shared": hits.get(Tier.SHARED, 0),
        },
        "miss_tokens": tokens.miss_tokens,
        "completion_tokens": tokens.completion_tokens,
        "cache_write_tokens": tokens.cache_write_tokens,
        "cache_write_ttl_class": tokens.cache_write_ttl_class,
    }


def _tokens_of(message: usage_pb2.TokenUsage) -> ChargedTokens:
    tiers = message.hit_tokens_by_tier
    counts = zip(_TIERS, (tiers.gpu, tiers.host, tiers.ssd, tiers.shared), strict=True)
    return ChargedTokens(
        hit_tokens_by_tier={tier: count for tier, count in counts if count},
        miss_tokens=message.miss_tokens,
        completion_tokens=message.completion_tokens,
        cache_write_tokens=message.cache_write_tokens,
        cache_write_ttl_class=message.cache_write_ttl_class,
    )


def _proof_fields(proof: PromptProof) -> dict[str, Any]:
    return {
        "scheme": proof.scheme,
        "block_tokens": proof.block_tokens,
        "commitment": proof.commitment,
        "namespace_mark": proof.namespace_mark,
        "runs": [_run_fields(run) for run in proof.runs],
        "digest_block_count": proof.digest_blocks,
        "digests": proof.digests,
    }


def _run_fields(run: ProvenRun) -> dict[str, Any]:
    fields: dict[str, Any] = {"digest": run.digest}
    for place, count in run.blocks.items():
        fields[_COUNTS[place]] = count
    return fields


def _proof_of(message: usage_pb2.PromptProof) -> PromptProof:
    return PromptProof(
        scheme=message.scheme,
        block_tokens=message.block_tokens,
        commitment=message.commitment,
        namespace_mark=message.namespace_mark,
        runs=tuple([ProvenRun(_blocks_of(run), run.digest) for run in message.runs]),
        digest_blocks=message.digest_block_count,
        digests=message.digests,
    )


def _blocks_of(run: usage_pb2.BlockRun) -> dict[Tier | None, int]:
    found = {place: getattr(run, name) for place, name in _COUNTS.items()}
    return {place: count for place, count in found.items() if count}
