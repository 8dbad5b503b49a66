"""Usage as messages of `kvtier.v1`. Pure functions, any thread."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.blocks import Tier
from kvtier.v1 import usage_pb2
from worker.usage_event import ChargedTokens, PromptProof, UsageEvent

__all__ = ["event_message", "timestamp_message", "tokens_message"]


def tokens_message(tokens: ChargedTokens) -> usage_pb2.TokenUsage:
    hits = tokens.hit_tokens_by_tier
    return usage_pb2.TokenUsage(
        prompt_tokens=tokens.prompt_tokens,
        hit_tokens=tokens.hit_tokens,
        hit_tokens_by_tier=usage_pb2.HitTokensByTier(
            gpu=hits.get(Tier.GPU, 0),
            host=hits.get(Tier.HOST, 0),
            ssd=hits.get(Tier.SSD, 0),
            shared=hits.get(Tier.SHARED, 0),
        ),
        miss_tokens=tokens.miss_tokens,
        completion_tokens=tokens.completion_tokens,
        cache_write_tokens=tokens.cache_write_tokens,
        cache_write_ttl_class=tokens.cache_write_ttl_class,
    )


def event_message(event: UsageEvent) -> usage_pb2.UsageEvent:
    request = event.request
    message = usage_pb2.UsageEvent(
        request_id=request.request_id,
        schema_version=event.schema_version,
        tenant_id=request.tenant_id,
        model=request.model,
        start_time=timestamp_message(request.start_time_ns),
        end_time=timestamp_message(event.end_time_ns),
        end_reason=usage_pb2.EndReason.Name(int(event.end)),
        tokens=tokens_message(event.tokens),
        node=request.node,
        client_request_id=request.client_request_id,
        project_id=request.project_id,
        user_id=request.user_id,
        key_id=request.key_id,
        session_id=request.session_id,
        # Unset in an event is what an empty one is in a request: none was asked for.
        service_class=request.service_class or None,
    )
    if event.lease_ids is not None:
        message.leases.CopyFrom(usage_pb2.LeaseIds(ids=event.lease_ids))
    if event.ttft_ns is not None:
        ttft = Duration()
        ttft.FromNanoseconds(event.ttft_ns)
        message.ttft.CopyFrom(ttft)
    if event.proof is not None:
        message.proof.CopyFrom(_proof_message(event.proof))
    return message


def _proof_message(proof: PromptProof) -> usage_pb2.PromptProof:
    return usage_pb2.PromptProof(
        scheme=proof.scheme,
        block_tokens=proof.block_tokens,
        commitment=proof.commitment,
        namespace_mark=proof.namespace_mark,
        runs=[
            usage_pb2.BlockRun(
                gpu_block_count=run.blocks.get(Tier.GPU, 0),
                host_block_count=run.blocks.get(Tier.HOST, 0),
                ssd_block_count=run.blocks.get(Tier.SSD, 0),
                shared_block_count=run.blocks.get(Tier.SHARED, 0),
                computed_block_count=run.blocks.get(None, 0),
                digest=run.digest,
            )
            for run in proof.runs
        ],
        digest_block_count=proof.digest_blocks,
        digests=proof.digests,
    )


def timestamp_message(nanoseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp
