"""Entries and their events as messages of `kvtier.v1`. Pure functions, any thread."""

from billing.ledger_lookup import FoundEntry
from billing.money import to_text
from billing.usage import StorageUse, UsageEvent
from billing.wire_correction import correction_message
from billing.wire_line import rated_line_message
from billing.wire_prompt_proof import proof_message
from kvtier.v1 import usage_pb2

__all__ = ["entry_message", "event_message"]


def entry_message(found: FoundEntry) -> usage_pb2.LedgerEntry:
    message = usage_pb2.LedgerEntry(
        position=found.position,
        event=event_message(found.event),
        amount=to_text(found.amount),
        currency_code=found.currency,
        price_book_version=found.price_version,
        hash=found.hash,
        lines=map(rated_line_message, found.lines),
        notes=found.notes,
        corrections=map(correction_message, found.corrections),
    )
    message.record_time.FromNanoseconds(found.recorded_time_ns)
    return message


def event_message(event: UsageEvent) -> usage_pb2.UsageEvent:
    """Inverse of `wire.submission_of`, of an event that was accepted."""
    assert event.end_reason is not None, "accepted events have one"
    tokens = event.tokens
    message = usage_pb2.UsageEvent(
        request_id=event.request_id,
        schema_version=event.schema_version,
        tenant_id=event.tenant_id,
        model=event.model,
        end_reason=f"END_REASON_{event.end_reason.name}",
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=tokens.prompt,
            hit_tokens=tokens.hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(
                gpu=tokens.hit_gpu,
                host=tokens.hit_host,
                ssd=tokens.hit_ssd,
                shared=tokens.hit_shared,
            ),
            miss_tokens=tokens.miss,
            completion_tokens=tokens.output,
            cache_write_tokens=tokens.cache_write,
            cache_write_ttl_class=tokens.cache_write_ttl_class,
        ),
        node=event.node,
        client_request_id=event.client_request_id,
        project_id=event.project_id,
        user_id=event.user_id,
        key_id=event.key_id,
        session_id=event.session_id,
        service_class=event.service_class,
    )
    for name in ("start", "end"):
        getattr(message, f"{name}_time").FromNanoseconds(getattr(event, f"{name}_time_ns"))
    if event.ttft_ns is not None:
        message.ttft.FromNanoseconds(event.ttft_ns)
    if event.lease_ids is not None:
        message.leases.CopyFrom(usage_pb2.LeaseIds(ids=event.lease_ids))
    if event.storage is not None:
        message.storage.CopyFrom(_storage_message(event.storage))
    if event.proof is not None:
        message.proof.CopyFrom(proof_message(event.proof))
    return message


def _storage_message(kept: StorageUse) -> usage_pb2.StorageUsage:
    return usage_pb2.StorageUsage(
        gpu_token_seconds=kept.gpu,
        host_token_seconds=kept.host,
        ssd_token_seconds=kept.ssd,
        shared_token_seconds=kept.shared,
    )
