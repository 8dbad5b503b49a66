"""What is known of a prompt from its worker and its cache service together, and what follows. Pure.

    worker pages (leading blocks) -> what the cache service would serve behind them -> computed

Invariant: hit tokens and miss tokens add up to the prompt's; a hit is whole blocks and leaves at
least one token to compute, as the worker does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from cache_service.replay.result import Savings
from kvtier.blocks import MissReason, Tier
from kvtier.keys import HASH_BYTES
from kvtier.v1 import describe_pb2, explain_pb2

__all__ = [
    "Explanation",
    "OtherScope",
    "acquire_data",
    "divergence_data",
    "reason_name",
    "shares_data",
]


@dataclass(frozen=True, slots=True)
class OtherScope:
    """Where else a prompt is cached."""

    scope_path: str
    """Of its last block there; empty: public."""
    block_count: int
    """From the prompt's first block on."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A prompt, explained. `whole`: of its whole chain; `tail`: of what is not in pages."""

    prompt: describe_pb2.DescribePromptResponse
    whole: explain_pb2.ExplainPrefixResponse
    tail: explain_pb2.ExplainPrefixResponse
    savings: Savings | None

    @property
    def block_count(self) -> int:
        """Blocks that may be a hit."""
        return len(self.prompt.block_hashes) // HASH_BYTES

    @property
    def hit_blocks(self) -> dict[Tier, int]:
        """By tier, fast to slow."""
        served = {Tier(share.tier): share.block_count for share in self.tail.shares}
        return {
            Tier.GPU: self.prompt.resident_count,
            Tier.HOST: served.get(Tier.HOST, 0),
            Tier.SSD: served.get(Tier.SSD, 0),
        }

    @property
    def hit_tokens(self) -> int:
        return sum(self.hit_blocks.values()) * self.prompt.block_tokens

    @property
    def miss_tokens(self) -> int:
        return self.prompt.prompt_tokens - self.hit_tokens

    @property
    def load_seconds(self) -> float | None:
        """None: no rate was measured yet."""
        if not self.hit_blocks[Tier.SSD]:
            return 0.0
        if not self.tail.HasField("load_time"):
            return None
        return self.tail.load_time.ToTimedelta().total_seconds()

    @property
    def miss_reason(self) -> MissReason:
        """Why the hit ends; NONE when everything that may be a hit is one."""
        if not self.block_count:
            return MissReason.TOO_SHORT
        return MissReason(self.tail.miss_reason)

    @property
    def stored_blocks(self) -> int:
        """Leading blocks that are there, hits or not: more than these within a prefix unit."""
        return self.prompt.resident_count + self.tail.stored_count

    @property
    def other_scope(self) -> OtherScope | None:
        """The scope in which most of the prompt is cached; None when no other has more."""
        if not self.tail.HasField("other_scope"):
            return None
        found, count = self.tail.other_scope, self.prompt.resident_count
        count += found.present_count
        first = 0
        for run in self.prompt.other_scopes[found.index].runs:
            first += run.block_count
            if count <= first:
                break
        return OtherScope(run.scope_path, count, count * self.prompt.block_tokens)

    @property
    def divergence(self) -> explain_pb2.Divergence | None:
        """Where the chain leaves what is cached; None when it does not, or the worker alone has
        what comes before."""
        if self.miss_reason is MissReason.NONE or not self.whole.HasField("divergence"):
            return None
        if self.whole.stored_count < self.prompt.resident_count:
            return None
        return self.whole.divergence

    def block_hash(self, index: int) -> str:
        """Hexadecimal; empty when the chain has no such block."""
        if not 0 <= index < self.block_count:
            return ""
        return self.prompt.block_hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES].hex()

    def data(self) -> dict[str, Any]:
        """For programs; units are in the names."""
        prompt, end = self.prompt, sum(self.hit_blocks.values())
        divergence, tokens = self.divergence, prompt.block_tokens
        return {
            "model": prompt.model,
            "namespace_id": prompt.namespace_id.hex(),
            "prompt_tokens": prompt.prompt_tokens,
            "block_tokens": tokens,
            "block_bytes": prompt.block_bytes,
            "block_count": self.block_count,
            "hit_tokens": self.hit_tokens,
            "hit_tokens_by_tier": {t.name.lower(): n * tokens for t, n in self.hit_blocks.items()},
            "hit_bytes_by_tier": {
                t.name.lower(): n * prompt.block_bytes for t, n in self.hit_blocks.items()
            },
            "miss_tokens": self.miss_tokens,
            "miss_reason": reason_name(self.miss_reason),
            "stored_tokens": self.stored_blocks * tokens,
            "other_scope": other_scope_data(self.other_scope),
            "load_seconds": self.load_seconds,
            "ssd_bytes_per_second": self.whole.ssd_rate.bytes_per_second or None,
            "ssd_waiting_bytes": self.tail.ssd_rate.waiting_bytes,
            "last_hit_block_hash": self.block_hash(end - 1),
            "first_miss_block_hash": self.block_hash(end),
            "divergence": None if divergence is None else divergence_data(divergence),
            "cost": None if self.savings is None else self.savings.data(),
        }


def other_scope_data(other: OtherScope | None) -> dict[str, Any] | None:
    if other is None:
        return None
    return {
        "scope_path": other.scope_path,
        "block_count": other.block_count,
        "tokens": other.tokens,
    }


def reason_name(reason: int) -> str:
    """Lower case; empty for no miss. A number that this release does not know stays one."""
    if not reason:
        return ""
    known = {int(each) for each in MissReason}
    return MissReason(reason).name.lower() if reason in known else f"reason_{reason}"


def divergence_data(divergence: explain_pb2.Divergence) -> dict[str, Any]:
    near = divergence.nearest
    nearest = {
        "hash_prefix": near.hash_prefix.hex(),
        "depth": near.depth,
        "block_count": near.block_count,
        "shares": shares_data(near.shares),
        "last_use_time": _time(near, "last_use_time"),
        "whole": near.whole,
    }
    return {
        "block_index": divergence.index,
        "chain_count": divergence.chain_count,
        "nearest": nearest if divergence.HasField("nearest") else None,
    }


def shares_data(shares: Sequence[explain_pb2.TierShare]) -> dict[str, dict[str, int]]:
    """By tier's name."""
    return {
        Tier(share.tier).name.lower(): {
            "block_count": share.block_count,
            "payload_bytes": share.payload_bytes,
        }
        for share in shares
    }


def acquire_data(record: explain_pb2.AcquireRecord) -> dict[str, Any]:
    state = explain_pb2.AcquireState.Name(record.state).removeprefix("ACQUIRE_STATE_").lower()
    divergence = record.divergence if record.HasField("divergence") else None
    return {
        "request_id": record.request_id,
        "lease_id": record.lease_id,
        "client_name": record.client_name,
        "namespace_id": record.namespace_id.hex(),
        "start_time": _time(record, "start_time"),
        "state": state,
        "asked_count": record.asked_count,
        "matched_count": record.matched_count,
        "shares": shares_data(record.shares),
        "match_reason": reason_name(record.match_reason),
        "ready_count": record.ready_count,
        "miss_reason": reason_name(record.miss_reason),
        "duration_seconds": record.duration.ToTimedelta().total_seconds(),
        "divergence": None if divergence is None else divergence_data(divergence),
        "missing_cached_now": record.missing_cached_now,
    }


def _time(message: Message, name: str) -> str | None:
    """ISO 8601 in UTC; None when it is not set."""
    return getattr(message, name).ToJsonString() if message.HasField(name) else None
