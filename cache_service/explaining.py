"""Explaining: answers why a prompt hits or misses, before and after, and shows the tree.

Invariant: no answer changes what it is about: not recency, not a counter, not a tier. What is told
of the present is what an acquire would find at the same moment, since both ask the same match.
Event loop only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cache_service.acquire_log import AcquireLog, AcquireRecord
from cache_service.acquiring import Acquiring
from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.chains import Chain, check_chain
from cache_service.divergence import divergence
from cache_service.errors import (
    AcquireUnknownError,
    BlockNotCachedError,
    InvalidNamespaceError,
)
from cache_service.explain_views import (
    AcquireView,
    OtherScopeView,
    PrefixExplained,
    TierShareView,
)
from cache_service.load_or_recompute import Pace
from cache_service.parts import Parts
from cache_service.side import Side
from cache_service.tree_walk import START, Place, Slice, slice_of
from kvtier.blocks import MissReason, Tier
from kvtier.keys import HASH_BYTES, BlockHash, NamespaceId

__all__ = ["Explaining"]


@dataclass(frozen=True, slots=True)
class _Reader:
    namespace_id: NamespaceId
    block_bytes: int


class Explaining(Side):
    """The side that only looks, and remembers what others were told."""

    def __init__(self, parts: Parts, acquiring: Acquiring) -> None:
        self._index = parts.index
        self._limits = parts.limits
        self._clock = parts.clock
        self._promoter = parts.promoter
        self._acquiring = acquiring
        self.acquires = AcquireLog(parts.clock)

    def prefix(
        self,
        namespace_id: NamespaceId,
        block_bytes: int,
        packed: Chain,
        *,
        whole_units: bool = False,
        others: Sequence[Chain] = (),
    ) -> PrefixExplained:
        """What an acquire of the chain would find; `block_bytes` 0: the namespace's own. `others`:
        what the same tokens are called in other scopes.

        Raises InvalidNamespaceError, MalformedChainError, TooManyBlocksError.
        """
        blocks_max = self._limits.max_blocks_per_call
        chain = check_chain(packed, blocks_max)
        others = [check_chain(other, blocks_max) for other in others]
        reader = self._reader(namespace_id, block_bytes)
        stored = self._acquiring.match(reader, chain).rows.tolist()
        match = self._acquiring.match(reader, chain, whole_units=whole_units)
        rows = match.rows.tolist()
        elsewhere = self._elsewhere(reader, others, len(stored))
        reason = match.reason
        if elsewhere is not None and reason is MissReason.NEVER_STORED:
            reason = MissReason.OTHER_SCOPE
        last = stored[-1] if stored else NOWHERE
        waiting = self._waiting_bytes(set(rows))
        shares = _served(match.tiers, reader.block_bytes)
        from_ssd = sum(share.payload_bytes for share in shares if share.tier is Tier.SSD)
        rate, silent = self._read_rate()
        seconds: float | None = 0.0
        if from_ssd:
            pace = Pace(rate, waiting, silent)
            seconds = None if rate is None else float(pace.seconds(np.array([from_ssd]))[0])
        return PrefixExplained(
            present_count=len(rows),
            tiers=match.tiers,
            shares=shares,
            load_seconds=seconds,
            read_bytes_per_second=rate,
            waiting_bytes=waiting,
            miss_reason=reason,
            divergence=(
                None if len(stored) == len(chain) else divergence(self._index, last, len(stored))
            ),
            stored_count=len(stored),
            other_scope=elsewhere,
        )

    def found(self, request_id: str, lease_id: str, owner: str | None) -> list[AcquireView]:
        """Acquires of a request or of a lease, the latest first; `owner` as in `AcquireLog.find`.

        Raises AcquireUnknownError.
        """
        views = [self._view(each) for each in self.acquires.find(request_id, lease_id, owner)]
        if not views:
            raise AcquireUnknownError(
                "no acquire of that request is remembered here: its id is another, it is too long"
                " ago, the service has started since, or all its blocks were in the worker's pages"
            )
        return views

    def tree(
        self, place: Place, namespace_id: NamespaceId | None, under: BlockHash | None, nodes: int
    ) -> Slice:
        """The next nodes of a walk, at most `nodes`. Raises BlockNotCachedError."""
        kinds = None
        if namespace_id is not None:
            kinds = self._index.tree.namespaces.numbers(namespace_id)
        top = NOWHERE
        if under is not None:
            top = self._index.tree.find(under)
            if top == ABSENT:
                if place != START:
                    return Slice((), None, changed=True)
                raise BlockNotCachedError("the block is not cached; name one that is listed")
        return slice_of(self._index, place, kinds, top, nodes)

    def check_integrity(self) -> None:
        self.acquires.check_integrity()

    # -- below -------------------------------------------------------------------------------------

    def _elsewhere(
        self, reader: _Reader, others: Sequence[Chain], stored_count: int
    ) -> OtherScopeView | None:
        """The first of the longest, where it is longer than what is stored of the chain itself."""
        counts = [len(self._acquiring.match(reader, other).rows) for other in others]
        longest = max(counts, default=0)
        if longest <= stored_count:
            return None
        return OtherScopeView(counts.index(longest), longest)

    def _reader(self, namespace_id: NamespaceId, block_bytes: int) -> _Reader:
        if len(namespace_id) != HASH_BYTES:
            raise InvalidNamespaceError(f"a namespace id has {HASH_BYTES} bytes")
        known = self._index.namespace_payload_bytes(namespace_id)
        return _Reader(namespace_id, block_bytes or known or 0)

    def _read_rate(self) -> tuple[float | None, float]:
        """Bytes a second as an acquire would judge it, or as it was last; how long nothing came."""
        if self._promoter is None:
            return None, 0.0
        now = self._clock()
        judged = self._promoter.judged_rate(now)
        rate = self._promoter.read_rate.bytes_per_second if judged is None else judged
        return rate, self._promoter.silent_seconds(now)

    def _waiting_bytes(self, rows: set[int]) -> int:
        """What the SSD reads for others: what it reads for these blocks is theirs already."""
        loads: Iterator[int] = iter(() if self._promoter is None else self._promoter.pins())
        return sum(self._index.tree.payload_bytes(row) for row in loads if row not in rows)

    def _view(self, record: AcquireRecord) -> AcquireView:
        now, tree = self._clock(), self._index.tree
        ended = now if record.ended is None else record.ended
        where, cached_now = None, False
        if record.missing_hash is not None:
            last = NOWHERE if record.matched_hash is None else tree.find(record.matched_hash)
            where = divergence(self._index, last, record.matched_count)
            cached_now = tree.find(record.missing_hash) != ABSENT
        tiers = bytes([Tier.HOST]) * record.host_count + bytes([Tier.SSD]) * record.ssd_count
        tiers += bytes([Tier.SHARED]) * record.shared_count
        return AcquireView(
            request_id=record.request_id,
            lease_id=record.lease_id,
            client_name=record.client_name,
            namespace_id=record.namespace_id,
            started_seconds=now - record.started,
            running=record.ended is None,
            given_up=record.given_up,
            asked_count=record.asked_count,
            shares=_served(tiers, record.block_bytes),
            matched_count=record.matched_count,
            match_reason=record.match_reason,
            ready_count=record.ready_count,
            miss_reason=record.miss_reason,
            duration_seconds=ended - record.started,
            divergence=where,
            missing_cached_now=cached_now,
        )


def _served(tiers: bytes, block_bytes: int) -> tuple[TierShareView, ...]:
    """Blocks by the tier that serves them, fast to slow."""
    counts = [(tier, tiers.count(tier)) for tier in (Tier.HOST, Tier.SSD, Tier.SHARED)]
    return tuple(TierShareView(tier, n, n * block_bytes) for tier, n in counts if n)
