"""What passes between the worker's edge and its engine. Frozen data, any thread.

The edge submits an `EngineRequest` with a sink; the engine calls the sink on its own thread with
these events, in order, and ends every request with exactly one `RequestEnded`, whatever happened:

    [TokenEvent | SampleEnded]*  RequestEnded
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

from kvtier.blocks import MissReason, Tier
from kvtier.keys import ChainScope
from worker.logprobs import TokenLogprob
from worker.sampling import Sampling

__all__ = [
    "LEASES_MAX",
    "CacheMode",
    "EndReason",
    "EngineEvent",
    "EngineRequest",
    "EngineUsage",
    "FinishReason",
    "RequestEnded",
    "RequestId",
    "SampleEnded",
    "SourceRun",
    "TokenEvent",
]

RequestId = NewType("RequestId", str)

LEASES_MAX = 1000
"""Of one request, that its usage names: as many as a usage event may have."""


class CacheMode(Enum):
    """What a request may do with the cache: GPU pages and cache service alike."""

    DEFAULT = "default"
    READ_ONLY = "read_only"
    BYPASS = "bypass"


class FinishReason(Enum):
    """Why a sample has no more tokens."""

    STOP = "stop"
    LENGTH = "length"


class EndReason(Enum):
    """What ended a request."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt to prefill and its samples to decode. Limits are checked by the edge already."""

    request_id: RequestId
    token_ids: tuple[int, ...]
    max_completion_tokens: int
    """Per sample, at least 1."""
    scope: ChainScope
    """Who may reuse which of its blocks."""
    sample_count: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop_token_ids: frozenset[int] = frozenset()
    """The model's own and the client's: a sample ends before the first of them."""
    cache_mode: CacheMode = CacheMode.DEFAULT
    one_off: bool = False
    """Its prompt will not come again: what is new of it leaves first, what it reuses is not counted
    as used."""
    ttl_seconds: int | None = None
    """What is new of it may be used so long, counted anew from each use; None: for ever."""
    owners: tuple[tuple[str, int | None], ...] = ()
    """Whose its blocks are, for the cache service's accounts: `kvtier.scopes.scope_runs`."""
    cache_timeout_seconds: float | None = None
    """Longest that it waits for the cache service, where the engine's own limit is longer; None:
    the engine's. 0: the cache service is not asked."""
    tenant: str = ""
    """Who shares the engine with others: the organisation."""
    priority: int = 0
    """The higher goes first."""
    adapter: str = ""
    """One of the model's added adapters; empty: none."""
    deadline: float = math.inf
    """On the engine's clock: it ends then, as DEADLINE, wherever it stands."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sample's next token. A stop token is not delivered."""

    sample_index: int
    token_id: int
    logprob: TokenLogprob | None = None
    """None where the request did not ask."""


@dataclass(frozen=True, slots=True)
class SampleEnded:
    sample_index: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class SourceRun:
    """Blocks of a prompt, one after the other, that came from one place."""

    tier: Tier | None
    """None: computed."""
    block_count: int


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What was really reused and computed.

    Invariant: hit_tokens + miss_tokens == prompt_tokens of a request that reached its first token.
    A request that ended earlier counts the prompt tokens that were restored or computed until then
    as they were, and the rest as neither: `prompt_tokens` is then their sum.
    """

    prompt_tokens: int
    hit_tokens_by_tier: dict[Tier, int]
    miss_tokens: int
    completion_tokens: int
    queue_seconds: float
    load_seconds: float
    miss_reason: MissReason
    written_tokens: int = 0
    """Of what was computed: tokens of whole blocks that were new in the worker's pages."""
    lease_ids: tuple[str, ...] | None = None
    """The cache service's leases under which blocks were restored for it, whether they were used or
    not; the first `LEASES_MAX`. None: the engine does not say."""
    runs: tuple[SourceRun, ...] = ()
    """Where `prompt_tokens` came from, first to last; the last block may be a part of one."""

    @property
    def hit_tokens(self) -> int:
        return sum(self.hit_tokens_by_tier.values())


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """The last event of a request; its pages are free (or kept as cache) when it is sent."""

    end_reason: EndReason
    usage: EngineUsage
    problem: str = ""
    """For ERROR: what went wrong, fit for the client."""


EngineEvent = TokenEvent | SampleEnded | RequestEnded

EventSink = Callable[[EngineEvent], None]
"""Called on the engine's thread; must return at once and never raise."""
