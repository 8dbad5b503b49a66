"""Words about blocks that cross every door: tiers, miss reasons, block types.

The numbers are those of `kvtier/v1/block.proto` (a contract test compares them), so converting at
the edge is `Tier(n)` and `int(tier)`. Pure data, any thread.
"""

from enum import IntEnum

__all__ = ["MissReason", "Tier"]


class Tier(IntEnum):
    """A place that can hold a block, from fast to slow."""

    GPU = 1
    HOST = 2
    SSD = 3
    SHARED = 4


class MissReason(IntEnum):
    """Why a chain of blocks stopped being a hit."""

    NONE = 0
    NEVER_STORED = 1
    EVICTED = 2
    EXPIRED = 3
    OTHER_SCOPE = 4
    OTHER_NAMESPACE = 5
    TOO_SHORT = 6
    CORRUPT = 7
    DEADLINE = 8
    QUOTA = 9
    NO_STORE = 10
    UNAVAILABLE = 11
    ARENA_FULL = 12
    RECOMPUTE_FASTER = 13
    PURGED = 14
