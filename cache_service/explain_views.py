"""What explaining tells its edge. Frozen data, any thread. Times are seconds back from now."""

from dataclasses import dataclass

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId

__all__ = [
    "AcquireView",
    "CachedChainView",
    "DivergenceView",
    "OtherScopeView",
    "PrefixExplained",
    "TierShareView",
    "TreeNodeView",
]


@dataclass(frozen=True, slots=True)
class TierShareView:
    """What of some blocks lies in one tier."""

    tier: Tier
    block_count: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class CachedChainView:
    """What is cached behind a block."""

    hash_prefix: bytes
    depth: int
    """Blocks on the longest branch."""
    block_count: int
    shares: tuple[TierShareView, ...]
    unused_seconds: float | None
    """None: not used since the start."""
    whole: bool
    """False: there is more of it than was looked at."""


@dataclass(frozen=True, slots=True)
class DivergenceView:
    """Where a chain leaves what is cached."""

    index: int
    chain_count: int
    nearest: CachedChainView | None
    """None when there is no other chain."""


@dataclass(frozen=True, slots=True)
class OtherScopeView:
    """The same tokens under other names."""

    index: int
    """Of the chain, among those that were asked about."""
    present_count: int


@dataclass(frozen=True, slots=True)
class PrefixExplained:
    """What an acquire would find."""

    present_count: int
    tiers: bytes
    shares: tuple[TierShareView, ...]
    load_seconds: float | None
    """None: nothing was measured."""
    read_bytes_per_second: float | None
    waiting_bytes: int
    miss_reason: MissReason
    divergence: DivergenceView | None
    """None when all are there."""
    stored_count: int
    """Blocks that are there, whatever prefix units end."""
    other_scope: OtherScopeView | None
    """None when no other scope has more."""


@dataclass(frozen=True, slots=True)
class AcquireView:
    """An acquire as it went."""

    request_id: str
    lease_id: str
    client_name: str
    namespace_id: NamespaceId
    started_seconds: float
    running: bool
    given_up: bool
    asked_count: int
    shares: tuple[TierShareView, ...]
    matched_count: int
    match_reason: MissReason
    ready_count: int
    miss_reason: MissReason
    duration_seconds: float
    divergence: DivergenceView | None
    missing_cached_now: bool


@dataclass(frozen=True, slots=True)
class TreeNodeView:
    """A run of blocks without a fork."""

    block_hash: BlockHash
    last_block_hash: BlockHash
    parent_block_hash: bytes
    """Empty for the first of a chain."""
    namespace_id: NamespaceId
    block_bytes: int
    block_count: int
    shares: tuple[TierShareView, ...]
    hit_count: int
    unused_seconds: float | None
    pinned_count: int
    child_count: int
    host_leaving_rank: int
    """From 1; 0: not among the next."""
    ssd_leaving_count: int
    owner: str
    """Of all its blocks; empty: nobody's."""
