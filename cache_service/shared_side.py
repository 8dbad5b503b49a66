"""SharedSide: what the cache does with a shared tier, as one side.

    an acquire that falls short -> worth asking? -> search -> load      (shared_loads.py)
    a commit -> its extents are queued                                  (shared_writer.py)

Invariant: an acquire whose chain is all here asks nobody; what is asked is bounded in time, and a
tier that is down is not asked. Event loop only.
"""

from collections import Counter
from collections.abc import Sequence

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.chains import Chain
from cache_service.hints import Hints
from cache_service.listener import CacheListener
from cache_service.parts import Parts
from cache_service.reservation import Reservation
from cache_service.session import Session
from cache_service.shared_loads import Beyond, SharedLoad, SharedLoads
from cache_service.shared_purging import SharedPurging
from cache_service.shared_writer import SharedWriter
from cache_service.side import Side
from kvtier.blocks import MissReason
from kvtier.breaker import Breaker
from storage.shared.tier import SharedTier

__all__ = ["SharedSide"]

ASK_BLOCKS_MIN = 2
"""Fewer are computed sooner than asked for."""

FAILURES_MAX = 3
RETRY_SECONDS = 5.0
RETRY_SECONDS_MAX = 60.0
"""How soon an engine that failed is tried again, the first time and at most."""

_ASKED_FOR = (MissReason.NEVER_STORED, MissReason.EVICTED)


class SharedSide(Side):
    """Takes over the tier: `drain` closes it. `writes`: whether this host writes to it."""

    def __init__(self, parts: Parts, tier: SharedTier, *, writes: bool) -> None:
        tally: CacheListener = parts.tally
        self._parts = parts
        self._tier = tier
        self._writes = writes
        self.breaker = Breaker(parts.clock, FAILURES_MAX, RETRY_SECONDS, RETRY_SECONDS_MAX)
        self.writer = SharedWriter(parts, tier, self.breaker, tally)
        self.purging = SharedPurging(parts, tier, self.writer, self.breaker)
        self._loads = SharedLoads(
            parts, tier, self.breaker, self.writer, self.purging.covers, tally
        )

    @property
    def slab_count(self) -> int:
        """Slabs of loads that the index does not know yet."""
        return self._loads.room.slab_count

    def wanted(
        self, session: Session, chain: Chain, present: int, reason: MissReason, hints: Hints
    ) -> bool:
        """Whether to ask for what continues the first `present` blocks of a chain."""
        place = hints.place
        if place is None or hints.whole_units or hints.one_off or reason not in _ASKED_FOR:
            return False
        if len(chain) - present < ASK_BLOCKS_MIN or not self.breaker.ready:
            return False
        if self._parts.closing.epoch is None:
            return False
        return bool(present or not place.first or self._anchor(session, hints) != NOWHERE)

    async def search(
        self, session: Session, chain: Chain, present: int, hints: Hints, cost: float | None
    ) -> Beyond | None:
        """What the tier has behind the first `present` blocks. REQUIRES: it is wanted."""
        assert hints.place is not None
        place = hints.place
        return await self._loads.search(session, chain, place, place.first + present, cost)

    def load(
        self, session: Session, beyond: Beyond, rows: Sequence[int], hints: Hints
    ) -> SharedLoad | None:
        """The load of what was found, where it still continues `rows`, which are here; close it."""
        assert hints.place is not None
        present = len(rows)
        position = hints.place.first + present
        anchor = int(rows[-1]) if present else self._anchor(session, hints)
        lost = not present and hints.place.first and anchor == NOWHERE
        if lost or not beyond.extents[0].start <= position < beyond.end:
            return None
        return SharedLoad(self._loads, session, beyond, position, anchor)

    def _anchor(self, session: Session, hints: Hints) -> int:
        """The row of the block before the chain's first named one, where it is cached."""
        tree, place = self._parts.index.tree, hints.place
        if place is None or not place.first:
            return NOWHERE
        row = tree.find(place.parent_hash)
        kind = tree.namespaces.number(session.namespace_id, session.block_bytes)
        return row if row != ABSENT and tree.kind(row) == kind else NOWHERE

    def committed(self, session: Session, reservation: Reservation) -> None:
        """A reservation's blocks are visible."""
        if self._writes:
            self.writer.committed(session, reservation)

    def tick(self) -> None:
        self.purging.tick()

    async def drain(self) -> None:
        await self._loads.drain()
        await self.purging.drain()
        await self.writer.drain()
        await self._tier.close()

    def pins(self) -> dict[int, int]:
        counts = Counter(self.writer.pins())
        counts.update(load.anchor for load in self._loads.loads if load.anchor != NOWHERE)
        return counts

    def check_integrity(self) -> None:
        self.writer.check_integrity()
