"""Acquiring: leases the longest present prefix of a chain and streams it as it becomes readable.

    match -> pin + lease -> [ ready ranges: host blocks at once, SSD blocks as they land ] -> end

Invariant: a block that was said to be ready stays readable until the lease ends. Whatever goes
wrong (corrupt, slow, no slab) ends the prefix there with its reason; nothing is an error. A stream
that is given up before its end releases its lease. Event loop only.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from cache_service.block import Block
from cache_service.index import BlockIndex
from cache_service.lease import Lease, LeaseTable
from cache_service.listener import CacheListener
from cache_service.promotion import Promoter
from cache_service.session import Session
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.views import (
    AcquireEvent,
    CacheLimits,
    EndView,
    MatchView,
    PrefixView,
    ReadyView,
)
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash
from storage.tier import Slab

__all__ = ["Acquiring", "Match"]


@dataclass(frozen=True, slots=True)
class Match:
    """The longest present prefix of a chain and why it ends."""

    blocks: tuple[Block, ...]
    reason: MissReason

    @property
    def tiers(self) -> bytes:
        return bytes(Tier.SSD if block.slab is None else Tier.HOST for block in self.blocks)


class Acquiring:
    """The reading side. `promoter` and `writer` are None without an SSD tier."""

    def __init__(
        self,
        index: BlockIndex,
        leases: LeaseTable,
        promoter: Promoter | None,
        writer: SsdWriter | None,
        health: SsdHealth,
        limits: CacheLimits,
        clock: Callable[[], float],
        listener: CacheListener,
    ) -> None:
        self._index = index
        self._leases = leases
        self._promoter = promoter
        self._writer = writer
        self._health = health
        self._limits = limits
        self._clock = clock
        self._listener = listener
        self.ready_bytes = 0
        """Payload bytes of all blocks that became readable, since the start."""

    def lookup(self, session: Session, chain: Sequence[BlockHash]) -> PrefixView:
        """Changes nothing, not even recency."""
        match = self.match(session, chain)
        return PrefixView(len(match.blocks), match.tiers, match.reason)

    def match(self, session: Session, chain: Sequence[BlockHash]) -> Match:
        """The present prefix as this session may see it."""
        found: list[Block] = []
        ssd_available = self._health.available
        for block_hash in chain:
            block = self._index.get(block_hash)
            if block is None:
                return Match(tuple(found), self._index.absence(block_hash))
            if (
                block.namespace_id != session.namespace_id
                or block.payload_bytes != session.block_bytes
            ):
                return Match(tuple(found), MissReason.OTHER_NAMESPACE)
            if block.slab is None and not ssd_available:
                return Match(tuple(found), MissReason.UNAVAILABLE)
            found.append(block)
        return Match(tuple(found), MissReason.NONE)

    async def acquire(
        self, session: Session, chain: Sequence[BlockHash], load_timeout_seconds: float | None
    ) -> AsyncGenerator[AcquireEvent, None]:
        """The events of one acquire. Raises TooManyLeasesError before the first."""
        match = self.match(session, chain)
        tiers = match.tiers
        host_count = tiers.count(Tier.HOST)
        if not match.blocks:
            self._listener.prefix_matched(len(chain), 0, 0, match.reason)
            self._listener.prefix_ready(0, match.reason, 0.0)
            yield MatchView("", 0.0, 0, b"", match.reason)
            yield EndView(0, match.reason)
            return
        began = self._clock()
        ttl = self._limits.lease_ttl_seconds
        lease = self._leases.open(session.session_id, match.blocks, began + ttl)
        self._listener.prefix_matched(len(chain), host_count, len(tiers) - host_count, match.reason)
        finished = False
        try:
            self._note_use(match.blocks)
            yield MatchView(lease.lease_id, ttl, len(match.blocks), tiers, match.reason)
            deadline = asyncio.get_running_loop().time() + self._timeout(load_timeout_seconds)
            reason = match.reason
            while (first := lease.ready_count) < len(lease.blocks):
                end = _resident_until(lease.blocks, first)
                if end > first:
                    self._make_ready(lease, end)
                    yield _ready(lease.blocks, first, end)
                    continue
                problem = await self._load(lease, first, deadline)
                if problem is not MissReason.NONE:
                    reason = problem
                    break
            view = self._end(lease, reason)
            self._listener.prefix_ready(view.ready_count, view.miss_reason, self._clock() - began)
            finished = True
            yield view
        finally:
            if not finished:
                self._leases.release(session.session_id, lease.lease_id)

    def _note_use(self, blocks: tuple[Block, ...]) -> None:
        """Counts a use of a prefix, and of what lies before it.

        An acquire may begin in the middle of a chain, when the client still has the beginning; that
        was used as well, and must not age faster than what continues it.
        """
        before = []
        ancestor = blocks[0].parent
        while ancestor is not None:
            before.append(ancestor)
            ancestor = ancestor.parent
        # Last to first: among equals the deeper block is then the older one, and leaves first.
        self._index.use(reversed(blocks))
        self._index.use(before)
        if self._writer is not None:
            self._writer.offer(block for block in blocks[-1:] if block.location is None)

    def _timeout(self, asked_seconds: float | None) -> float:
        limit = self._limits.load_timeout_seconds
        return limit if asked_seconds is None else min(limit, asked_seconds)

    def _make_ready(self, lease: Lease, ready_count: int) -> None:
        for block in lease.blocks[lease.ready_count : ready_count]:
            self.ready_bytes += block.payload_bytes
        self._leases.make_ready(lease, ready_count)

    async def _load(self, lease: Lease, first: int, deadline: float) -> MissReason:
        """Brings block `first` into memory and starts on those behind it. NONE: it is there."""
        block = lease.blocks[first]
        if not block.cached:
            return self._index.absence(block.block_hash)
        if self._promoter is None or block.location is None:
            return MissReason.EVICTED
        seconds_left = deadline - asyncio.get_running_loop().time()
        if seconds_left <= 0:
            return MissReason.DEADLINE
        load = self._promoter.load(block)
        started = 1
        for behind in lease.blocks[first + 1 :]:
            if started >= self._limits.read_ahead_blocks or not behind.cached:
                break
            if behind.slab is None:
                self._promoter.load(behind)
                started += 1
        # Waiting does not cancel: others may want the block, and a reader writes into its slab.
        await asyncio.wait({load}, timeout=seconds_left)
        if not self._leases.live(lease):
            return MissReason.EXPIRED
        return load.result() if load.done() else MissReason.DEADLINE

    def _end(self, lease: Lease, reason: MissReason) -> EndView:
        """Lets go of what did not become ready."""
        if not self._leases.live(lease):
            # Expired or closed meanwhile: nothing of it is protected any more.
            return EndView(0, MissReason.EXPIRED)
        self._leases.trim(lease)
        if not lease.ready_count:
            self._leases.release(lease.session_id, lease.lease_id)
        return EndView(lease.ready_count, reason)


def _resident_until(blocks: list[Block], first: int) -> int:
    """End of the run of blocks from `first` that are in host memory."""
    end = first
    while end < len(blocks) and blocks[end].slab is not None and blocks[end].cached:
        end += 1
    return end


def _ready(blocks: list[Block], first: int, end: int) -> ReadyView:
    slabs: list[Slab] = []
    for block in blocks[first:end]:
        assert block.slab is not None
        slabs.append(block.slab)
    return ReadyView(first, tuple(slabs), tuple(block.checksum for block in blocks[first:end]))
