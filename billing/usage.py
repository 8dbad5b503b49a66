"""Usage events: the fact that a request was served, and what makes one acceptable.

An event is stored as received and never changes; it holds no price. `refusal_of` is pure: the same
event at the same time always gets the same answer. Frozen data, any thread.
"""

import json
from dataclasses import dataclass
from enum import Enum
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NewType

__all__ = [
    "SCHEMA_VERSION",
    "EndReason",
    "Refusal",
    "TenantId",
    "TokenCounts",
    "UsageEvent",
    "event_from_text",
    "event_text",
    "lookup_name",
    "refusal_of",
    "token_refusal",
]

TenantId = NewType("TenantId", str)

SCHEMA_VERSION = 1
"""The only layout of events so far."""

TOKENS_MAX = 10**10
"""No request has more tokens; keeps sums over 900 million events inside 64 bits."""

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


class Refusal(Enum):
    """Why an event has no entry. Values go over the wire: frozen."""

    MISSING_ID = "MISSING_ID"
    MISSING_TENANT = "MISSING_TENANT"
    MISSING_MODEL = "MISSING_MODEL"
    MISSING_TIME = "MISSING_TIME"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    UNKNOWN_END_REASON = "UNKNOWN_END_REASON"
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
    OTHER_CONTENT = "OTHER_CONTENT"


@dataclass(frozen=True, slots=True)
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


def refusal_of(event: UsageEvent, now_ns: int) -> Refusal | None:
    """Why `event` cannot have an entry, or None when it can."""
    return _identity_refusal(event) or _time_refusal(event, now_ns) or _charge_refusal(event)


def _identity_refusal(event: UsageEvent) -> Refusal | None:
    if event.schema_version != SCHEMA_VERSION:
        return Refusal.UNKNOWN_SCHEMA
    if not event.request_id:
        return Refusal.MISSING_ID
    if not event.tenant_id:
        return Refusal.MISSING_TENANT
    if not event.model:
        return Refusal.MISSING_MODEL
    # Not the client's own name for the request: nobody may dodge the bill by sending a strange one.
    for text in (event.request_id, event.tenant_id, event.model):
        if len(text) > TEXT_CHARACTERS_MAX or not text.isprintable():
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
    lost = event.end_reason is EndReason.WORKER_LOST
    if lost and (event.tokens.prompt or event.tokens.output):
        return Refusal.LOST_WITH_TOKENS
    return None


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
    """Canonical text of an acceptable event: one line of ASCII JSON. Frozen: it is hashed."""
    # Spelled out, keys in alphabetical order: json.dumps takes four times as long.
    t, end_reason = event.tokens, event.end_reason.value if event.end_reason else None
    return (
        f'{{{_cache_write(t)}"client_request_id":{_quoted(event.client_request_id)}'
        f',"end_reason":{_text_or_null(end_reason)}'
        f',"end_time_ns":{_number_or_null(event.end_time_ns)}'
        f',"hit":{t.hit},"hit_gpu":{t.hit_gpu},"hit_host":{t.hit_host}'
        f',"hit_shared":{t.hit_shared},"hit_ssd":{t.hit_ssd}'
        f',"miss":{t.miss},"model":{_quoted(event.model)},"node":{_quoted(event.node)}'
        f',"output":{t.output},"prompt":{t.prompt}'
        f',"request_id":{_quoted(event.request_id)}'
        f',"schema_version":{event.schema_version}'
        f',"start_time_ns":{_number_or_null(event.start_time_ns)}'
        f',"tenant_id":{_quoted(event.tenant_id)}'
        f',"ttft_ns":{_number_or_null(event.ttft_ns)}}}'
    )


def _cache_write(tokens: TokenCounts) -> str:
    """Nothing where there is none: the text of such an event is that of before there were any."""
    count, ttl_class = tokens.cache_write, tokens.cache_write_ttl_class
    if not count and not ttl_class:
        return ""
    return f'"cache_write":{count},"cache_write_ttl_class":{_quoted(ttl_class)},'


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
    )
