"""What the engine needs of a cache service: one door, two verbs.

The engine's transfer threads call these; they block, and each is bounded by its deadline. Neither
raises for anything the cache does: a cache that is down, slow or wrong is a short restore.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash
from kvtier.v1.cache_pb2 import OwnerRun
from worker.landing import Landing, Source

__all__ = ["NO_HINTS", "CacheHints", "CachePort", "RestoreResult", "StoreResult"]


@dataclass(frozen=True, slots=True)
class CacheHints:
    """What a request says of its blocks, see `GenerateRequest`."""

    one_off: bool = False
    ttl_seconds: int | None = None
    owners: tuple[tuple[str, int | None], ...] = ()
    """Whose the blocks of a whole chain are: `kvtier.scopes.scope_runs`."""
    whole_units: bool = False
    """Of a restore: ends where a prefix unit does."""
    unit_ends: tuple[int, ...] = ()
    """Of a store: after how many blocks of the chain units end."""
    marks_forks: bool = False
    """Of a store: where it parts from others a unit ends."""
    place: tuple[int, bytes] | None = None
    """Of a restore: how many blocks of the whole chain are before its first, and the hash of the
    last of those, empty where there is none. None: unknown."""
    adapter: str = ""
    """In whose namespace the chain is, by the worker's own name for it; empty: the base's."""

    @property
    def ttl(self) -> Duration | None:
        """On the wire."""
        return None if self.ttl_seconds is None else Duration(seconds=self.ttl_seconds)

    @property
    def owner_runs(self) -> list[OwnerRun]:
        """On the wire."""
        runs, first = [], 0
        for owner, end in self.owners:
            runs.append(OwnerRun(owner=owner, block_count=(end or _NO_END) - first))
            first = end or _NO_END
        return runs


_NO_END = 2**31 - 1

NO_HINTS = CacheHints()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """`tiers[i]` is the tier block i came from; its length is how many blocks were restored."""

    tiers: tuple[Tier, ...]
    miss_reason: MissReason
    """Why the chain ended there; NONE when all of it was restored."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    stored_count: int
    present_count: int
    """Blocks that were there already, or are being stored by someone else."""
    refused_count: int


class CachePort(Protocol):
    """Restore and store blocks of one namespace. Thread-safe."""

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Landing,
        timeout_seconds: float,
        hints: CacheHints,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        """Moves the longest prefix of `chain` that can be had in time into the first of `pages`,
        and tells them what has landed.

        `recompute_seconds`: what computing a block of it costs; then less is restored where loading
        would take longer. None: unknown.

        `chain` may start anywhere in a prompt's chain. Every restored payload was verified against
        its checksum, as `Landing` has it; a page past the restored count may hold garbage. When
        this returns or raises, nothing of the service's is read any more.
        """
        ...

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        hints: CacheHints,
    ) -> StoreResult:
        """Offers a whole chain from its first block; reads those pages that the service misses.

        The caller keeps `pages` unchanged until this returns.
        """
        ...

    def connected(self) -> bool: ...

    def close(self) -> Any: ...
