"""A request inside the engine, and its samples: where each stands. Owned by the engine's thread.

    WAITING -> LOADING -> PREFILL -> DECODE -> ENDED
        \\________________^                      ^ from any phase

The first sample's table carries the prompt; the others fork from it when the prompt is computed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockChain, BlockHash
from worker.block_table import BlockTable
from worker.cache_port import CacheHints
from worker.requests import (
    CacheMode,
    EngineRequest,
    EngineUsage,
    EventSink,
    FinishReason,
)

__all__ = ["LiveRequest", "Phase", "Sample"]


class Phase(Enum):
    WAITING = "waiting"
    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sample:
    """One completion. `computed` counts its leading tokens whose KV is in `table`."""

    index: int
    table: BlockTable
    chain: BlockChain
    """Of the prompt and, as they are computed, the generated tokens."""
    reserved_pages: int
    """Pages it may still take; the pool keeps them for it."""
    generator: torch.Generator | None
    computed: int = 0
    sealed_blocks: int = 0
    generated: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass(slots=True, eq=False)
class LiveRequest:
    """Mutable; never leaves the engine."""

    request: EngineRequest
    sink: EventSink
    chain: BlockChain
    """Of the prompt's full blocks, with the rest of the prompt as its tail."""
    arrived: float
    phase: Phase = Phase.WAITING
    samples: list[Sample] = field(default_factory=list)
    hit_tokens_by_tier: dict[Tier, int] = field(default_factory=dict)
    miss_reason: MissReason = MissReason.NONE
    admitted: float | None = None
    loaded: float | None = None
    """When loading ended; equals `admitted` when nothing was loaded."""
    completion_tokens: int = 0
    written_tokens: int = 0
    """Of whole blocks that it computed and was the first to keep in pages."""
    offered_blocks: int = 0
    """Leading blocks already offered to the cache service."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.token_ids)

    @property
    def keeps(self) -> bool:
        """Whether what it computes stays in any tier."""
        return self.request.cache_mode is CacheMode.DEFAULT

    @property
    def cache_hints(self) -> CacheHints:
        """What the cache service is told of its blocks."""
        asked = self.request
        return CacheHints(asked.one_off, asked.ttl_seconds, asked.owners)

    def until(self, now: float) -> float:
        """Until when what it stores or uses now may be used."""
        ttl = self.request.ttl_seconds
        return math.inf if ttl is None else now + ttl

    def load_seconds(self, limit_seconds: float) -> float:
        """How long it waits for the cache service, where nobody waits longer than the limit."""
        asked = self.request.cache_timeout_seconds
        return limit_seconds if asked is None else min(asked, limit_seconds)

    def reusable_chain(self, block_tokens: int) -> Sequence[BlockHash]:
        """Blocks that may be a hit: whole, and leaving at least one token to compute."""
        if self.request.cache_mode is CacheMode.BYPASS:
            return []
        return self.chain.hashes[: (self.prompt_tokens - 1) // block_tokens]

    def tokens_of(self, sample: Sample, start: int, end: int) -> list[int]:
        """Tokens `[start, end)` of prompt and completion."""
        prompt = self.request.token_ids
        count = len(prompt)
        return [
            *prompt[start : min(end, count)],
            *sample.generated[max(start - count, 0) : max(end - count, 0)],
        ]

    def usage(self, now: float) -> EngineUsage:
        """What was reused and computed until `now`."""
        hit = sum(self.hit_tokens_by_tier.values())
        computed = min(self.samples[0].computed, self.prompt_tokens) if self.samples else hit
        admitted = now if self.admitted is None else self.admitted
        loaded = now if self.loaded is None else self.loaded
        return EngineUsage(
            prompt_tokens=computed,
            hit_tokens_by_tier={t: n for t, n in self.hit_tokens_by_tier.items() if n},
            miss_tokens=computed - hit,
            completion_tokens=self.completion_tokens,
            queue_seconds=max(0.0, admitted - self.arrived),
            load_seconds=max(0.0, loaded - admitted),
            miss_reason=self.miss_reason,
            written_tokens=self.written_tokens,
        )
