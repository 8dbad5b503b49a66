"""WriteAhead: blocks go to the SSD shortly before they leave host memory.

    free memory runs low -> the leaves worth least are settled, a window of them:
        the SSD has it                   -> it may leave
        wanted, affordable               -> queued, with all before it that the SSD lacks
        not wanted, or not affordable    -> it may leave unwritten
    a taker meets a leaf that is not settled -> the same for that leaf; where it is queued, or the
        queue is full, the taker takes another or waits (`room.py`)

Leaving takes no time and writing does, so what leaves next is written ahead of it. The window is
small: a block that is written and then used again was written too early. A chain is written for its
last block: what is before it may not be wanted by itself and is still needed on the SSD.

Invariant: at most a window of blocks waits to be written; a block leaves unwritten only when
admission did not want it, or a taker's patience ended. Event loop only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cache_service.admission import Admission
from cache_service.block_tree import NOWHERE
from cache_service.departures import Departures
from cache_service.index import BlockIndex
from cache_service.ssd_health import SsdHealth
from cache_service.views import CacheLimits
from cache_service.write_queue import WriteQueue
from storage.host.arena import HostArena

__all__ = ["WriteAhead", "WrittenOut", "window_bytes"]

WINDOW_DIVISOR_MIN = 8
"""The window is never more than this part of the arena, however large a batch is."""


@dataclass(frozen=True, slots=True)
class WrittenOut:
    """What the end of the service did with blocks that only host memory had."""

    written_count: int
    left_count: int
    """Not wanted, not affordable, or out of time."""
    left_bytes: int


def window_bytes(limits: CacheLimits, capacity_bytes: int) -> int:
    """How much is settled ahead: a batch, or a share of a large arena."""
    wanted = max(limits.write_batch_bytes, int(limits.write_ahead_share * capacity_bytes))
    return min(wanted, capacity_bytes // WINDOW_DIVISOR_MIN)


class WriteAhead:
    """See `WriteTiming`. Also asked by the room, before a block leaves."""

    def __init__(
        self,
        index: BlockIndex,
        departures: Departures,
        queue: WriteQueue,
        arena: HostArena,
        health: SsdHealth,
        window: int,
    ) -> None:
        self._index = index
        self._departures = departures
        self._queue = queue
        self._arena = arena
        self._health = health
        self._high = window
        self._low = window // 2
        """Room falls to this before more is settled, so that batches are not of single blocks."""
        self._filling = False
        self._stuck_bytes = 0
        """Settled and not what leaves next, as a taker found out: no room. At most a window, so
        that no more than two are ever settled."""
        self._closing = False

    # -- as WriteTiming ----------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        return self._queue.due or self._short

    def committed(self, rows: Sequence[int]) -> int:
        return 0

    def used(self, row: int) -> int:
        return 0

    def refill(self) -> None:
        while self._short:
            self._filling = True
            row = self._departures.first()
            assert row is not None
            if self._settle_run(row) is Admission.DEFER:
                return
        self._filling = False

    def gave_up(self) -> None:
        """The leaf whose chain was too long for one queue is settled too, or it would be tried
        for ever."""
        row = self._departures.first()
        if row is not None:
            self._departures.settle(row)

    # -- for the room ------------------------------------------------------------------------------

    def may_leave(self, row: int) -> bool:
        """False: it is on its way to the SSD, or will be when the queue has room again."""
        if self._index.tree.on_ssd(row) or self._departures.settled(row):
            return True
        answer = self._settle(row)
        if answer is not Admission.DECLINE:
            self._filling = True
            self._stuck_bytes = min(self._departures.settled_bytes, self._high)
        return answer is Admission.DECLINE

    # -- the end -----------------------------------------------------------------------------------

    async def write_out(self, write: Callable[[], Awaitable[None]], seconds: float) -> WrittenOut:
        """Writes what only host memory has, dearest first, each after all before it.

        `write` returns when nothing waits. A round is a queue full; none begins after `seconds`,
        or while the SSD counts as absent. What recycling drops for it meanwhile is left. REQUIRES:
        nothing is stored any more.
        """
        self._closing = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        index, tree = self._index, self._index.tree
        before = index.host_only_count
        rows = sorted(self._host_only(), key=index.host_standing)
        while rows and loop.time() < deadline and self._health.available:
            # A row that was given away meanwhile is another block's, and that one's turn.
            while rows and self._keep(rows[-1]) is not Admission.DEFER:
                rows.pop()
            await write()
        left = self._host_only()
        left_bytes = sum(tree.payload_bytes(row) for row in left)
        return WrittenOut(max(0, before - len(left)), len(left), left_bytes)

    def _keep(self, row: int) -> Admission:
        tree = self._index.tree
        if not tree.cached(row) or not tree.in_host(row) or tree.on_ssd(row):
            return Admission.DECLINE
        return self._queue.keep(row)

    def _host_only(self) -> list[int]:
        tree = self._index.tree
        columns, high = tree.columns, tree.directory.row_high
        here = columns.array("slab_page")[:high] != NOWHERE
        here &= columns.array("segment")[:high] == NOWHERE
        here &= columns.array("cached")[:high].astype(bool)
        rows: list[int] = np.flatnonzero(here).tolist()
        return rows

    # -- below -------------------------------------------------------------------------------------

    @property
    def _short(self) -> bool:
        """True when more has to be settled, and there is something."""
        return (
            self._room_bytes() < (self._high if self._filling else self._low)
            and not self._closing
            and self._health.available
            and self._departures.first() is not None
        )

    def _room_bytes(self) -> int:
        settled = self._departures.settled_bytes
        self._stuck_bytes = min(self._stuck_bytes, settled)
        free = self._arena.capacity_bytes - self._arena.used_bytes
        return free + settled - self._stuck_bytes

    def _settle(self, row: int) -> Admission:
        """Decides how a leaf leaves. DEFER: not yet, the queue is full."""
        answer = self._queue.keep(row)
        if answer is not Admission.DEFER:
            self._departures.settle(row)
        return answer

    def _settle_run(self, row: int) -> Admission:
        """The same for a leaf and what leaves right after it: each block before it that nothing
        else in memory continues, until another leaf is next or the window is full."""
        tree, columns = self._index.tree, self._index.tree.columns
        standing = self._index.host_standing
        answer = self._settle(row)
        following = self._departures.first()
        end = float("inf") if following is None else standing(following)
        while answer is not Admission.DEFER and self._room_bytes() < self._high:
            row = tree.parent(row)
            if (
                row == NOWHERE
                or columns.slab_page[row] == NOWHERE  # read from its middle on
                or columns.host_children[row] != 1
                or columns.settled[row]
                or standing(row) > end
            ):
                break
            if tree.on_ssd(row):
                self._departures.settle(row)
            else:
                answer = self._settle(row)
        return answer
