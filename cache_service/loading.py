"""Loading: one acquire's blocks on their way from the SSD, for as long as that pays.

    next block -> worth it? -> reads ahead -> wait, asking again -> there, or why not

Invariant: what is cut away stays so for this acquire, and none of it is read for it; without its
caller's cost of computing only the deadline cuts. A read that began runs to its end for others.
One for each acquire, on the event loop.
"""

import asyncio
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import NOWHERE
from cache_service.index import BlockIndex
from cache_service.lease import Lease, LeaseTable
from cache_service.load_or_recompute import Pace, worth_loading
from cache_service.promotion import Promoter
from cache_service.read_rate import ReadRate
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason
from storage.ssd.read_order import ReadFlow

__all__ = ["Loading"]

READ_AHEAD_MIN = 8

DECIDE_SECONDS = 0.01
"""Between two decisions: a rate says nothing new sooner, and a long chain costs tens of
microseconds to decide about."""

OWN_SECONDS_MIN = 0.05
"""After so much waiting an acquire's own progress says more than everybody's rate: whom it shares
the disk with is in it."""


class Loading:
    """Brings the blocks of a lease into memory, one need after the other."""

    def __init__(
        self,
        index: BlockIndex,
        leases: LeaseTable,
        promoter: Promoter | None,
        limits: CacheLimits,
        clock: Callable[[], float],
        lease: Lease,
        seconds_max: float,
        recompute_seconds: float | None,
    ) -> None:
        """`recompute_seconds`: what computing a block costs the caller; None: unknown."""
        self._index = index
        self._leases = leases
        self._promoter = promoter
        self._limits = limits
        self._clock = clock
        self._lease = lease
        self._deadline = asyncio.get_running_loop().time() + seconds_max
        self._recompute_seconds = recompute_seconds
        self._until = len(lease.rows)
        """Blocks from here on are cut away."""
        self._decided = -math.inf
        self._own = ReadRate()
        self._waited = 0.0
        self._flow = ReadFlow()
        self._asked_until = 0
        self._reads = np.zeros(0, dtype=np.int64)
        if recompute_seconds is not None:
            self._reads = np.cumsum(self._to_read(0))
        self._counted_reads = 0

    async def bring(self, first: int) -> MissReason:
        """Brings block `first` into memory and starts on those behind it. NONE: it is there.

        Call it with the first block that is not in memory, and again after what it brought.
        """
        tree, row = self._index.tree, self._lease.rows[first]
        if not tree.cached(row):
            return self._index.absences.reason(tree.block_hash(row))
        if self._promoter is None or not tree.on_ssd(row):
            return MissReason.EVICTED
        began = self._clock()
        load: asyncio.Future[MissReason] | None = None
        while True:
            seconds_left = self._deadline - asyncio.get_running_loop().time()
            if seconds_left <= 0:
                return MissReason.DEADLINE
            if not self._pays(self._promoter, first, began):
                return MissReason.RECOMPUTE_FASTER
            if load is None:
                load = self._promoter.load(self._wanted(first), self._flow)
            # Waiting does not cancel: others may want the block, and a reader writes into its slab.
            await asyncio.wait({load}, timeout=min(seconds_left, self._patience(first)))
            if not self._leases.live(self._lease):
                return MissReason.EXPIRED
            if load.done():
                self._note_landed(first, began)
                return load.result()

    def _wanted(self, first: int) -> list[int]:
        """Block `first` and those behind it to have in flight, where not in memory."""
        tree, rows = self._index.tree, self._lease.rows
        wanted = [rows[first]]
        count_max = self._read_ahead(tree.payload_bytes(rows[first]))
        for at in range(first + 1, self._until):
            if len(wanted) >= count_max or not tree.cached(rows[at]):
                break
            if not tree.in_host(rows[at]):
                wanted.append(rows[at])
                self._asked_until = at + 1
        return wanted

    def _read_ahead(self, block_bytes: int) -> int:
        """Blocks of that size to have in flight."""
        wanted = max(READ_AHEAD_MIN, self._limits.read_ahead_bytes // block_bytes)
        return min(self._limits.read_ahead_blocks, wanted)

    # -- load or recompute -------------------------------------------------------------------------

    def _patience(self, first: int) -> float:
        """Seconds until the next decision, at the latest."""
        if self._recompute_seconds is None:
            return math.inf
        rest = self._recompute_seconds * (len(self._lease.rows) - first)
        return max(DECIDE_SECONDS, rest / 8)

    def _pays(self, promoter: Promoter, first: int, began: float) -> bool:
        now = self._clock()
        if self._recompute_seconds is not None and now - self._decided >= DECIDE_SECONDS:
            self._decided = now
            self._until = min(self._until, first + self._worth(promoter, first, began, now))
        return first < self._until

    def _worth(self, promoter: Promoter, first: int, began: float, now: float) -> int:
        assert self._recompute_seconds is not None
        on_ssd = self._to_read(first)
        block_bytes = self._index.tree.payload_bytes(self._lease.rows[first])
        asked = int(np.count_nonzero(on_ssd[: max(0, self._asked_until - first)]))
        waiting_bytes = max(0, promoter.under_way_bytes - asked * block_bytes)
        rate = promoter.judged_rate(now)
        if self._waited + now - began >= OWN_SECONDS_MIN:
            own = self._own.judged(now, began)
            rate, waiting_bytes = (rate, waiting_bytes) if own is None else (own, 0)
        silent = max(promoter.silent_seconds(now), now - began)
        return worth_loading(
            on_ssd, block_bytes, self._recompute_seconds, Pace(rate, waiting_bytes, silent)
        )

    def _to_read(self, first: int) -> "NDArray[np.bool_]":
        """Which of the blocks from `first` on are not in memory."""
        rows = np.array(self._lease.rows[first:], dtype=np.int64)
        absent: NDArray[np.bool_] = self._index.tree.columns.array("slab_page")[rows] == NOWHERE
        return absent

    def _note_landed(self, first: int, began: float) -> None:
        if self._recompute_seconds is None:
            return
        now = self._clock()
        self._waited += now - began
        reads = int(self._reads[first])
        block_bytes = self._index.tree.payload_bytes(self._lease.rows[first])
        self._own.landed((reads - self._counted_reads) * block_bytes, began, now)
        self._counted_reads = reads
