"""The usage journal's own keys, as drawn in `docs/formats/usage_journal.md`. Pure, any thread."""

import base64
from typing import Any

from journal.dialect import Dialect, Wire
from journal.format import JournalFormat, integer_of, text_of
from kvtier.blocks import Tier
from worker.errors import UsageJournalFailedError
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
    end_request,
    lose_request,
)
from worker.usage_wire import event_from_bytes, event_message

__all__ = ["FORMAT_VERSION", "USAGE_FORMAT", "end_fields"]

FORMAT_VERSION = 5
"""Frozen: stored in every segment. Ends of format 1 say nothing of cache writes, requests of format
2 nothing of projects and users, those of format 3 nothing of keys, sessions, classes, leases and
proofs; ends of formats up to 4 are their keys, later ones the bytes of `kvtier.v1.UsageEvent`."""

_TIERS = (("gpu", Tier.GPU), ("host", Tier.HOST), ("ssd", Tier.SSD), ("shared", Tier.SHARED))
_PLACES: dict[Tier | None, str] = {**{tier: name for name, tier in _TIERS}, None: "computed"}


def end_fields(event: UsageEvent) -> dict[str, Any]:
    """The keys of a dead letter, and of an `end` record up to format 4."""
    hits = event.tokens.hit_tokens_by_tier
    leases = {} if event.lease_ids is None else {"leases": event.lease_ids}
    proof = {} if event.proof is None else {"proof": _proof_fields(event.proof)}
    return {
        "request": _request_fields(event.request),
        "schema_version": event.schema_version,
        "end_time_ns": event.end_time_ns,
        "end": int(event.end),
        "hit_tokens": {name: hits.get(tier, 0) for name, tier in _TIERS},
        "miss_tokens": event.tokens.miss_tokens,
        "completion_tokens": event.tokens.completion_tokens,
        "cache_write": {
            "tokens": event.tokens.cache_write_tokens,
            "ttl_class": event.tokens.cache_write_ttl_class,
        },
        "ttft_ns": event.ttft_ns,
        **leases,
        **proof,
    }


def _request_fields(request: AdmittedRequest) -> dict[str, Any]:
    """Without what nobody noted: a request of an older worker stays one."""
    # Spelled out: dataclasses.asdict takes longer than all the rest of a line.
    fields: dict[str, Any] = {
        "request_id": request.request_id,
        "tenant_id": request.tenant_id,
        "model": request.model,
        "node": request.node,
        "client_request_id": request.client_request_id,
        "start_time_ns": request.start_time_ns,
    }
    for name in _NOTED_LATER:
        said = getattr(request, name)
        if said is not None:
            fields[name] = said
    return fields


def _proof_fields(proof: PromptProof) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "scheme": proof.scheme,
        "block_tokens": proof.block_tokens,
        "commitment": proof.commitment.hex(),
        "namespace_mark": proof.namespace_mark.hex(),
        "runs": [
            {**{_PLACES[place]: n for place, n in run.blocks.items()}, "digest": run.digest.hex()}
            for run in proof.runs
        ],
    }
    if proof.digest_blocks:
        fields["digest_blocks"] = proof.digest_blocks
        fields["digests"] = base64.b64encode(proof.digests).decode()
    return fields


_NOTED_LATER = ("project_id", "user_id", "key_id", "session_id", "service_class")


def _event(fields: dict[str, Any]) -> UsageEvent:
    hits = fields["hit_tokens"]
    ttft_ns = fields["ttft_ns"]
    written = fields.get("cache_write", {"tokens": 0, "ttl_class": ""})
    return UsageEvent(
        request=AdmittedRequest(**fields["request"]),
        end_time_ns=integer_of(fields["end_time_ns"]),
        end=UsageEnd(fields["end"]),
        tokens=ChargedTokens(
            hit_tokens_by_tier={tier: hits[name] for name, tier in _TIERS if hits[name]},
            miss_tokens=integer_of(fields["miss_tokens"]),
            completion_tokens=integer_of(fields["completion_tokens"]),
            cache_write_tokens=integer_of(written["tokens"]),
            cache_write_ttl_class=text_of(written["ttl_class"]),
        ),
        ttft_ns=None if ttft_ns is None else integer_of(ttft_ns),
        lease_ids=tuple(map(text_of, fields["leases"])) if "leases" in fields else None,
        schema_version=integer_of(fields["schema_version"]),
        proof=_proof(fields["proof"]) if "proof" in fields else None,
    )


def _proof(fields: dict[str, Any]) -> PromptProof:
    return PromptProof(
        scheme=integer_of(fields["scheme"]),
        block_tokens=integer_of(fields["block_tokens"]),
        commitment=bytes.fromhex(fields["commitment"]),
        namespace_mark=bytes.fromhex(fields["namespace_mark"]),
        runs=tuple(
            ProvenRun(
                {place: integer_of(run[name]) for place, name in _PLACES.items() if name in run},
                bytes.fromhex(run["digest"]),
            )
            for run in fields["runs"]
        ),
        digest_blocks=integer_of(fields.get("digest_blocks", 0)),
        digests=base64.b64decode(fields.get("digests", ""), validate=True),
    )


def _begin_fields(request: AdmittedRequest) -> dict[str, Any]:
    return {"request": _request_fields(request)}


def _request(fields: dict[str, Any]) -> AdmittedRequest:
    return AdmittedRequest(**fields["request"])


def _lost(request: AdmittedRequest, now_ns: int) -> UsageEvent:
    return lose_request(request, now_ns=now_ns)


def _unpaid(event: UsageEvent, now_ns: int) -> UsageEvent:
    return end_request(event.request, UsageEnd.ERROR, ChargedTokens(), now_ns=now_ns, ttft_ns=None)


USAGE_FORMAT = JournalFormat(
    Dialect(
        noun="usage journal",
        holder="worker",
        file_prefix="usage-",
        format_version=FORMAT_VERSION,
        begin_fields=_begin_fields,
        read_begin=_request,
        end_fields=end_fields,
        read_end=_event,
        name=lambda request: request.request_id,
        subject=lambda event: event.request,
        lost=_lost,
        unwritten=_unpaid,
        failure=UsageJournalFailedError,
        wire=Wire(lambda event: event_message(event).SerializeToString(), event_from_bytes),
    )
)
