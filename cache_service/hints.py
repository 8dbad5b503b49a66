"""What a client says of the blocks it stores or reads, beside their names. Frozen."""

from dataclasses import dataclass

from cache_service.owner_runs import NOBODYS, OwnerRuns
from kvtier.keys import BlockHash

__all__ = ["NO_HINTS", "ChainPlace", "Hints"]


@dataclass(frozen=True, slots=True)
class ChainPlace:
    """Where in its chain the first block of a call is."""

    first: int
    """Blocks before it."""
    parent_hash: BlockHash
    """Of the last of those; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Hints:
    """Of one reserve or acquire."""

    one_off: bool = False
    """New blocks are the first to leave; a use leaves no trace."""
    ttl_seconds: int | None = None
    """Stored blocks end after so long, used ones not before; None: stored ones never, and a use
    says nothing."""
    owners: OwnerRuns = NOBODYS
    """Whose the chain's blocks are; of a reserve."""
    whole_units: bool = False
    """Of an acquire: the match ends where a prefix unit does."""
    unit_ends: tuple[int, ...] = ()
    """Of a reserve: positions in the chain at which units end."""
    marks_forks: bool = False
    """Of a reserve: where it parts from others a unit ends."""
    place: ChainPlace | None = None
    """Of an acquire; None: unknown."""


NO_HINTS = Hints()
