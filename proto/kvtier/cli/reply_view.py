"""A reply as people and programs read it. Pure functions.

The keys of `reply_data` are a contract that programs read; they only grow.
"""

import re
from typing import Any

from kvtier.cli.cost import Cost
from kvtier.cli.inference import Reply
from kvtier.cli.logprob_view import logprob_data
from kvtier.errors import WireError
from kvtier.v1 import block_pb2, usage_pb2

__all__ = ["reply_data", "usage_lines", "visible"]

TIERS = (("gpu", "GPU"), ("host", "host"), ("ssd", "SSD"), ("shared", "shared"))

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def usage_lines(reply: Reply, cost: Cost) -> list[str]:
    """What was reused and computed, and what it costs: two lines."""
    charged, computed = reply.usage.tokens, reply.usage.computed
    uncharged = computed.prompt_tokens > charged.prompt_tokens
    tokens = computed if uncharged else charged
    counts = [(getattr(tokens.hit_tokens_by_tier, key), name) for key, name in TIERS]
    tiers = ", ".join(f"{count:,} {name}" for count, name in counts if count)
    usage = (
        f"prompt {tokens.prompt_tokens:,} = {tokens.hit_tokens:,} hit"
        f"{f' ({tiers})' if tiers else ''} + {tokens.miss_tokens:,} miss,"
        f" completion {tokens.completion_tokens:,}, TTFT {reply.ttft_seconds * 1000:,.0f} ms"
        f"{', not charged' if uncharged else ''}"
    )
    if cost.problem:
        return [usage, f"cost unknown: {cost.problem}"]
    saved = f", {cost.saved} saved by hits" if cost.saved != "0" else ""
    return [usage, f"cost {cost.currency} {cost.amount}{saved}"]


def reply_data(
    reply: Reply, cost: Cost, error: WireError | None, logprobs_asked: bool
) -> dict[str, Any]:
    """Counts are numbers, amounts decimal text; `cost` is null when it is not known, `error` when
    the request ended well, `logprobs` when they were not asked for, and `computed` when the worker
    did not say."""
    usage, tokens = reply.usage, reply.usage.tokens
    reason = block_pb2.MissReason.Name(usage.miss_reason).removeprefix("MISS_REASON_")
    return {
        "request_id": usage.request_id,
        "model": reply.model,
        "text": reply.texts[0],
        "finish_reason": reply.finish_reasons[0],
        "logprobs": logprob_data(reply.logprobs[0]) if logprobs_asked else None,
        "usage": {
            **_token_data(tokens),
            "computed": _token_data(usage.computed) if usage.HasField("computed") else None,
            "miss_reason": None if reason == "UNSPECIFIED" else reason,
            "end_time": usage.end_time.ToJsonString() if usage.HasField("end_time") else None,
            "ttft_seconds": reply.ttft_seconds,
            "queue_seconds": usage.queue_time.ToTimedelta().total_seconds(),
            "load_seconds": usage.load_time.ToTimedelta().total_seconds(),
        },
        "cost": None
        if cost.problem
        else {
            "amount": cost.amount,
            "saved": cost.saved,
            "currency": cost.currency,
            "price_book_version": cost.price_book_version,
        },
        "cost_problem": cost.problem,
        "error": None
        if error is None
        else {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "metadata": dict(error.metadata),
        },
    }


def _token_data(tokens: usage_pb2.TokenUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "hit_tokens": tokens.hit_tokens,
        "hit_tokens_by_tier": {key: getattr(tokens.hit_tokens_by_tier, key) for key, _ in TIERS},
        "miss_tokens": tokens.miss_tokens,
        "completion_tokens": tokens.completion_tokens,
    }


def visible(text: str) -> str:
    """`text` with control characters replaced: what a model writes must not steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
