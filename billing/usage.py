"""Usage events: the fact that a request was served, and what makes one acceptable.

An event is stored as received and never changes; it holds no price. `refusal_of` is pure: the same
event at the same time always gets the same answer. Frozen data, any thread.
"""

import json
from dataclasses import dataclass, replace
from enum import Enum
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NewType

from billing.frozen import frozen_dataclass
from billing.prompt_proof import PromptProof, malformed, proof_of_data, proof_text

__all__ = [
    "LEASES_MAX",
    "RESERVED_PREFIX",
    "SCHEMA_VERSION",
    "TEXT_CHARACTERS_MAX",
    "TIERS",
    "TOKENS_MAX",
    "EndReason",
    "Refusal",
    "StorageUse",
    "TenantId",
    "TokenCounts",
    "UsageEvent",
    "event_from_text",
    "event_text",
    "lookup_name",
    "refusal_of",
    "texts_of_before",
    "token_refusal",
]

TenantId = NewType("TenantId", str)

SCHEMA_VERSION = 1
"""The only layout of events so far."""

TOKENS_MAX = 10**10
"""No request has more tokens; keeps sums over 900 million events inside 64 bits."""

RESERVED_PREFIX = "correction/"
"""Begins the names of entries that are no events."""

TOKEN_SECONDS_MAX = 10**17
"""Ten billion tokens for four months."""

LEASES_MAX = 1_000
TEXT_CHARACTERS_MAX = 1024
FUTURE_NS_MAX = 24 * 3600 * 10**9
"""How far a worker's clock may run ahead. A refusal is for good, so this is wide: a wrong time zone
passes, a wrong year does not."""


class EndReason(Enum):
    """What ended a request. Values are stored: frozen."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"
    WORKER_LOST = "worker_lost"


TIERS = ("gpu", "host", "ssd", "shared")
"""Where a hit can come from, fastest first: names of fields, here and on the wire."""


class Refusal(Enum):
    """Why an event has no entry. Values go over the wire: frozen."""

    MISSING_ID = "MISSING_ID"
    MISSING_TENANT = "MISSING_TENANT"
    MISSING_MODEL = "MISSING_MODEL"
    MISSING_TIME = "MISSING_TIME"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    UNKNOWN_END_REASON = "UNKNOWN_END_REASON"
    RESERVED_ID = "RESERVED_ID"
    INVALID_TEXT = "INVALID_TEXT"
    NEGATIVE_QUANTITY = "NEGATIVE_QUANTITY"
    QUANTITY_TOO_LARGE = "QUANTITY_TOO_LARGE"
    HIT_MISS_SUM = "HIT_MISS_SUM"
    TIER_SUM = "TIER_SUM"
    TIME_ORDER = "TIME_ORDER"
    TIME_RANGE = "TIME_RANGE"
    FUTURE = "FUTURE"
    LOST_WITH_TOKENS = "LOST_WITH_TOKENS"
    CACHE_WRITE_SUM = "CACHE_WRITE_SUM"
    TOO_MANY_LEASES = "TOO_MANY_LEASES"
    PROOF_MALFORMED = "PROOF_MALFORMED"
    PROOF_SUM = "PROOF_SUM"
    OTHER_CONTENT = "OTHER_CONTENT"


@frozen_dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one request in disjoint classes; `prompt` is what the worker says they sum to."""

    prompt: int
    hit: int
    hit_gpu: int
    hit_host: int
    hit_ssd: int
    hit_shared: int
    miss: int
    output: int
    cache_write: int = 0
    """Of miss and output, not beside them: of blocks that were new in the cache."""
    cache_write_ttl_class: str = ""


@dataclass(frozen=True, slots=True)
class StorageUse:
    """Tokens kept x seconds, by tier. None: not metered there; 0: metered, and nothing kept."""

    gpu: int | None = None
    host: int | None = None
    ssd: int | None = None
    shared: int | None = None


@frozen_dataclass(frozen=True, slots=True)
class UsageEvent:
    """As the worker sent it; `refusal_of` says whether it makes sense. Times: ns since 1970 UTC."""

    request_id: str
    schema_version: int
    tenant_id: TenantId
    model: str
    start_time_ns: int | None
    end_time_ns: int | None
    end_reason: EndReason | None
    """None: not one this version knows."""
    tokens: TokenCounts
    node: str
    client_request_id: str
    ttft_ns: int | None
    """None: there was no first token. Zero is a time."""
    project_id: str | None = None
    """This and the next three: None when the worker does not say, "" for nobody in particular."""
    user_id: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    lease_ids: tuple[str, ...] | None = None
    """None: the worker does not say; () is a request without any."""
    storage: StorageUse | None = None
    """None: nobody metered it."""
    service_class: str | None = None
    """What price books may have layers by; None: none was asked for."""
    proof: PromptProof | None = None
    """None: no token of a prompt is charged, or the worker makes no proofs."""


def refusal_of(event: UsageEvent, now_ns: int) -> Refusal | None:
    """Why `event` cannot have an entry, or None when it can."""
    return _identity_refusal(event) or _time_refusal(event, now_ns) or _charge_refusal(event)


def _identity_refusal(event: UsageEvent) -> Refusal | None:
    if event.schema_version != SCHEMA_VERSION:
        return Refusal.UNKNOWN_SCHEMA
    if not event.request_id:
        return Refusal.MISSING_ID
    if event.request_id.startswith(RESERVED_PREFIX):
        return Refusal.RESERVED_ID
    if not event.tenant_id:
        return Refusal.MISSING_TENANT
    if not event.model:
        return Refusal.MISSING_MODEL
    # Not the client's own name for the request: nobody may dodge the bill by sending a strange one.
    for text in (event.request_id, event.tenant_id, event.model):
        if len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
            return Refusal.INVALID_TEXT
    for said in (event.project_id, event.key_id, event.service_class):
        if said and (len(said) > TEXT_CHARACTERS_MAX or not said.isprintable()):
            return Refusal.INVALID_TEXT
    if event.end_reason is None:
        return Refusal.UNKNOWN_END_REASON
    return None


def _time_refusal(event: UsageEvent, now_ns: int) -> Refusal | None:
    if event.start_time_ns is None or event.end_time_ns is None:
        return Refusal.MISSING_TIME
    if event.start_time_ns < 0 or (event.ttft_ns is not None and event.ttft_ns < 0):
        return Refusal.TIME_RANGE
    if event.end_time_ns < event.start_time_ns:
        return Refusal.TIME_ORDER
    if event.end_time_ns > now_ns + FUTURE_NS_MAX:
        return Refusal.FUTURE
    if event.ttft_ns is not None and event.ttft_ns > 2**62:
        return Refusal.TIME_RANGE
    return None


def _charge_refusal(event: UsageEvent) -> Refusal | None:
    refusal = token_refusal(event.tokens)
    if refusal is not None:
        return refusal
    refusal = _beside_refusal(event)
    if refusal is not None:
        return refusal
    lost = event.end_reason is EndReason.WORKER_LOST
    if lost and (event.tokens.prompt or event.tokens.output):
        return Refusal.LOST_WITH_TOKENS
    return None


def _beside_refusal(event: UsageEvent) -> Refusal | None:
    """Of what is in no token class."""
    if event.storage is not None:
        kept = event.storage
        metered = [n for n in (kept.gpu, kept.host, kept.ssd, kept.shared) if n is not None]
        if min(metered, default=0) < 0:
            return Refusal.NEGATIVE_QUANTITY
        if max(metered, default=0) > TOKEN_SECONDS_MAX:
            return Refusal.QUANTITY_TOO_LARGE
    if len(event.lease_ids or ()) > LEASES_MAX:
        return Refusal.TOO_MANY_LEASES
    if event.proof is not None:
        if malformed(event.proof):
            return Refusal.PROOF_MALFORMED
        if not _adds_up(event.proof, event.tokens):
            return Refusal.PROOF_SUM
    return None


def _adds_up(proof: PromptProof, tokens: TokenCounts) -> bool:
    """Whether blocks are the tokens; the last one may be a part of one, and then was computed."""
    size, blocks = proof.block_tokens, proof.blocks_by_place()
    return (
        sum(blocks.values()) == -(-tokens.prompt // size)
        and blocks["gpu"] * size == tokens.hit_gpu
        and blocks["host"] * size == tokens.hit_host
        and blocks["shared"] * size == tokens.hit_shared
        and blocks["ssd"] * size == tokens.hit_ssd
    )


def token_refusal(tokens: TokenCounts) -> Refusal | None:
    """Why no event can have these counts, or None when one can."""
    t = tokens
    tiers = (t.hit_gpu, t.hit_host, t.hit_ssd, t.hit_shared)
    counts = (t.prompt, t.hit, t.miss, t.output, t.cache_write, *tiers)
    if min(counts) < 0:
        return Refusal.NEGATIVE_QUANTITY
    if max(counts) > TOKENS_MAX:
        return Refusal.QUANTITY_TOO_LARGE
    if t.hit + t.miss != t.prompt:
        return Refusal.HIT_MISS_SUM
    if sum(tiers) != t.hit:
        return Refusal.TIER_SUM
    if t.cache_write > t.miss + t.output:
        return Refusal.CACHE_WRITE_SUM
    return None


def lookup_name(text: str) -> str | None:
    """`text` as a name to look an entry up by; None when it is empty or not fit for one."""
    return text if text and len(text) <= TEXT_CHARACTERS_MAX and text.isprintable() else None


def event_text(event: UsageEvent) -> str:
    """Canonical text of an acceptable event: one line of ASCII JSON. Frozen: it is hashed.

    What an event does not say has no key, so the text of an older worker's stays what it was.
    """
    # Spelled out, keys in alphabetical order: json.dumps takes four times as long.
    t, end_reason = event.tokens, event.end_reason.value if event.end_reason else None
    return (
        f'{{{_cache_write(t)}"client_request_id":{_quoted(event.client_request_id)}'
        f',"end_reason":{_text_or_null(end_reason)}'
        f',"end_time_ns":{_number_or_null(event.end_time_ns)}'
        f',"hit":{t.hit},"hit_gpu":{t.hit_gpu},"hit_host":{t.hit_host}'
        f',"hit_shared":{t.hit_shared},"hit_ssd":{t.hit_ssd}'
        f"{_said('key_id', event.key_id)}{_leases(event.lease_ids)}"
        f',"miss":{t.miss},"model":{_quoted(event.model)},"node":{_quoted(event.node)}'
        f',"output":{t.output}{_said("project_id", event.project_id)},"prompt":{t.prompt}'
        f"{_proof(event.proof)}"
        f',"request_id":{_quoted(event.request_id)}'
        f',"schema_version":{event.schema_version}'
        f"{_said('service_class', event.service_class)}{_said('session_id', event.session_id)}"
        f',"start_time_ns":{_number_or_null(event.start_time_ns)}{_storage(event.storage)}'
        f',"tenant_id":{_quoted(event.tenant_id)}'
        f',"ttft_ns":{_number_or_null(event.ttft_ns)}{_said("user_id", event.user_id)}}}'
    )


def texts_of_before(event: UsageEvent) -> list[str]:
    """The texts that kvtiers which did not know the later keys made of it, newest first."""
    texts, known = [], event
    for later in _LATER:
        without: dict[str, Any] = dict.fromkeys(later)
        known = replace(known, **without)
        texts.append(event_text(known))
    return texts


_LATER = (
    ("proof",),
    ("project_id", "user_id", "key_id", "session_id", "lease_ids", "storage"),
)
"""What came together, newest first. Not the service class: it makes a price, so an event that
differs by it is another one."""


def _cache_write(tokens: TokenCounts) -> str:
    """Nothing where there is none: the text of such an event is that of before there were any."""
    count, ttl_class = tokens.cache_write, tokens.cache_write_ttl_class
    if not count and not ttl_class:
        return ""
    return f'"cache_write":{count},"cache_write_ttl_class":{_quoted(ttl_class)},'


def _said(key: str, text: str | None) -> str:
    return "" if text is None else f',"{key}":{_quoted(text)}'


def _leases(lease_ids: tuple[str, ...] | None) -> str:
    if lease_ids is None:
        return ""
    return f',"lease_ids":[{",".join(map(_quoted, lease_ids))}]'


def _storage(kept: StorageUse | None) -> str:
    if kept is None:
        return ""
    tiers = {"gpu": kept.gpu, "host": kept.host, "shared": kept.shared, "ssd": kept.ssd}
    parts = (f'"{name}":{_number_or_null(count)}' for name, count in tiers.items())
    return f',"storage":{{{",".join(parts)}}}'


def _proof(proof: PromptProof | None) -> str:
    return "" if proof is None else f',"proof":{proof_text(proof)}'


def _text_or_null(text: str | None) -> str:
    return "null" if text is None else _quoted(text)


def _number_or_null(number: int | None) -> str:
    return "null" if number is None else str(number)


def event_from_text(text: str) -> UsageEvent:
    """Inverse of `event_text`. Raises ValueError when `text` is not exactly such a line."""
    try:
        fields = json.loads(text, parse_float=_no_float)
        event = _event_of(fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a stored usage event: {error}") from None
    if event_text(event) != text:
        raise ValueError("not the canonical text of a usage event")
    return event


def _no_float(text: str) -> float:
    raise ValueError(f"{text} is not a whole number")


def _event_of(fields: dict[str, Any]) -> UsageEvent:
    tokens = TokenCounts(
        prompt=fields["prompt"],
        hit=fields["hit"],
        hit_gpu=fields["hit_gpu"],
        hit_host=fields["hit_host"],
        hit_ssd=fields["hit_ssd"],
        hit_shared=fields["hit_shared"],
        miss=fields["miss"],
        output=fields["output"],
        cache_write=fields.get("cache_write", 0),
        cache_write_ttl_class=fields.get("cache_write_ttl_class", ""),
    )
    return UsageEvent(
        request_id=fields["request_id"],
        schema_version=fields["schema_version"],
        tenant_id=TenantId(fields["tenant_id"]),
        model=fields["model"],
        start_time_ns=fields["start_time_ns"],
        end_time_ns=fields["end_time_ns"],
        end_reason=EndReason(fields["end_reason"]),
        tokens=tokens,
        node=fields["node"],
        client_request_id=fields["client_request_id"],
        ttft_ns=fields["ttft_ns"],
        project_id=fields.get("project_id"),
        user_id=fields.get("user_id"),
        key_id=fields.get("key_id"),
        session_id=fields.get("session_id"),
        lease_ids=tuple(fields["lease_ids"]) if "lease_ids" in fields else None,
        storage=StorageUse(**fields["storage"]) if "storage" in fields else None,
        service_class=fields.get("service_class"),
        proof=proof_of_data(fields["proof"]) if "proof" in fields else None,
    )
