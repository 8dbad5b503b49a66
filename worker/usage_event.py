"""The fact that a request was served, and what each end of it charges.

Invariant: hit tokens + miss tokens = prompt tokens in every event, and no event holds a price, a
prompt or an answer. The rule by end reason is the table in `docs/billing.md`; it lives in `charge`
and nowhere else. Frozen data and pure functions, any thread.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from kvtier.blocks import Tier
from worker.requests import EngineUsage

__all__ = [
    "SCHEMA_VERSION",
    "AdmittedRequest",
    "ChargedTokens",
    "PromptProof",
    "ProvenRun",
    "UsageEnd",
    "UsageEvent",
    "charge",
    "computed_tokens",
    "end_request",
    "lose_request",
]

SCHEMA_VERSION = 1
"""Of the event; goes to billing and into the journal. Frozen once released."""


class UsageEnd(IntEnum):
    """What ended a request. The numbers are those of `kvtier/v1/usage.proto`, frozen."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ERROR = 5
    WORKER_LOST = 6


UNCHARGED = frozenset({UsageEnd.ERROR, UsageEnd.WORKER_LOST})
"""Ends that are our fault: the event is written, with no token in it."""


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """What is known of a request when the engine took it; written before any reply."""

    request_id: str
    tenant_id: str
    model: str
    node: str
    client_request_id: str
    start_time_ns: int
    """Wall clock, nanoseconds since 1970."""
    project_id: str | None = None
    """This and those below: "" when the request names none; None: of a worker that kept no note."""
    user_id: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    service_class: str | None = None


@dataclass(frozen=True, slots=True)
class ChargedTokens:
    """Tokens in disjoint classes; those of a usage event are charged. Raises ValueError for a
    negative count.
    """

    hit_tokens_by_tier: dict[Tier, int] = field(default_factory=dict)
    miss_tokens: int = 0
    completion_tokens: int = 0
    cache_write_tokens: int = 0
    """Of miss and completion tokens, and not beside them: those of blocks that it was the first to
    keep. Nothing is charged for them."""
    cache_write_ttl_class: str = ""
    """Of these; empty where there are none, or they have no end."""

    def __post_init__(self) -> None:
        counts = (*self.hit_tokens_by_tier.values(), self.miss_tokens, self.completion_tokens)
        if min(*counts, self.cache_write_tokens) < 0:
            raise ValueError(f"a usage event with a negative count: {self}")
        if self.cache_write_tokens > self.miss_tokens + self.completion_tokens:
            raise ValueError(f"a usage event that wrote more than it computed: {self}")

    @property
    def hit_tokens(self) -> int:
        return sum(self.hit_tokens_by_tier.values())

    @property
    def prompt_tokens(self) -> int:
        return self.hit_tokens + self.miss_tokens


@dataclass(frozen=True, slots=True)
class ProvenRun:
    """Blocks of a prompt, one after the other."""

    blocks: dict[Tier | None, int]
    """How many from where; None: computed. Of several places only where runs were put together."""
    digest: bytes
    """Of all of the prompt's tokens up to the run's end: `kvtier.prompt_proof`."""


@dataclass(frozen=True, slots=True)
class PromptProof:
    """What proves the prompt's token classes, to whoever has its tokens."""

    scheme: int
    block_tokens: int
    commitment: bytes
    """To the salt of the digests."""
    namespace_mark: bytes
    runs: tuple[ProvenRun, ...]
    """First to last; the last block may be a part of one."""
    digest_blocks: int = 0
    """`digests` has one after so many blocks each; 0: it has none."""
    digests: bytes = b""


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One per admitted request, whatever ended it."""

    request: AdmittedRequest
    end_time_ns: int
    """Wall clock, never before the start."""
    end: UsageEnd
    tokens: ChargedTokens
    ttft_ns: int | None = None
    """From arrival to the first token; None when there was none."""
    lease_ids: tuple[str, ...] | None = None
    """As `EngineUsage` has them; None: nobody says."""
    schema_version: int = SCHEMA_VERSION
    proof: PromptProof | None = None
    """None: no token of a prompt is charged, or its worker makes none."""


def charge(
    usage: EngineUsage, end: UsageEnd, undelivered_tokens: int = 0, ttl_class: str = ""
) -> ChargedTokens:
    """The tokens that an end of kind `end` charges, of what the engine says it did.

    `undelivered_tokens` were generated after a stop string had ended their sample, while the engine
    did not know it yet: never charged. `ttl_class`: what new blocks are kept under.
    """
    return ChargedTokens() if end in UNCHARGED else _counted(usage, undelivered_tokens, ttl_class)


def computed_tokens(usage: EngineUsage, ttl_class: str = "") -> ChargedTokens:
    """What the engine says it reused and computed, whatever of it is charged."""
    return _counted(usage, 0, ttl_class)


def _counted(usage: EngineUsage, undelivered_tokens: int, ttl_class: str) -> ChargedTokens:
    completion_tokens = max(0, usage.completion_tokens - undelivered_tokens)
    # A block may hold tokens that are not charged: of those that are, it is no more than all.
    written = min(usage.written_tokens, usage.miss_tokens + completion_tokens)
    return ChargedTokens(
        hit_tokens_by_tier={tier: n for tier, n in usage.hit_tokens_by_tier.items() if n},
        miss_tokens=usage.miss_tokens,
        completion_tokens=completion_tokens,
        cache_write_tokens=written,
        cache_write_ttl_class=ttl_class if written else "",
    )


def end_request(
    request: AdmittedRequest,
    end: UsageEnd,
    tokens: ChargedTokens,
    *,
    now_ns: int,
    ttft_ns: int | None,
    lease_ids: tuple[str, ...] | None = None,
    proof: PromptProof | None = None,
) -> UsageEvent:
    """The event of a request that ended while its worker lived."""
    end_time_ns = max(now_ns, request.start_time_ns)
    return UsageEvent(request, end_time_ns, end, tokens, ttft_ns, lease_ids, proof=proof)


def lose_request(request: AdmittedRequest, *, now_ns: int) -> UsageEvent:
    """The event of a request whose worker died; nothing is charged."""
    end_time_ns = max(now_ns, request.start_time_ns)
    return UsageEvent(request, end_time_ns, UsageEnd.WORKER_LOST, ChargedTokens())
