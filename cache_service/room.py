"""HostRoom: slabs for blocks that want into host memory, made free by evicting leaves.

Invariant: only what the index gives up is freed; a held block (leased, reserved behind, being
written or read) never is. When everything is held by writes that are on their way to the SSD, or
what leaves next must be written first, a taker may wait for that, for a bounded time; then the next
to leave leaves, written or not. Event loop only.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cache_service.accounts import Account
from cache_service.extent_reclaim import leaf_of_size, rows_of_extent
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from kvtier.blocks import Tier
from storage.host.arena import HostArena
from storage.tier import Slab, rounded

if TYPE_CHECKING:
    from cache_service.ssd_writer import SsdWriter
    from cache_service.write_ahead import WriteAhead

__all__ = ["HostRoom"]


class HostRoom:
    """Takes slabs from the arena for the cache."""

    def __init__(
        self, arena: HostArena, index: BlockIndex, listener: CacheListener, wait_seconds: float
    ) -> None:
        self._arena = arena
        self._index = index
        self._listener = listener
        self._wait_seconds = wait_seconds
        self._change = asyncio.Event()
        self._ahead: WriteAhead | None = None
        self._writer: SsdWriter | None = None
        self.evicted_count = 0

    def write_before_leaving(self, ahead: "WriteAhead", writer: "SsdWriter") -> None:
        """From now on `ahead` is asked before a block leaves, and `writer` is woken after."""
        self._ahead, self._writer = ahead, writer

    def take(self, block_bytes: int, asker: Account | None = None) -> Slab | None:
        """A slab, evicting what is worth least until there is one.

        `asker`: the account it is for, where its room is claimed; above its soft quota it takes
        nothing that is within another's. None when all is held, when what leaves next has to be
        written first, or when the asker may not have it.
        """
        slabs = self.take_up_to(block_bytes, 1, asker)
        return slabs[0] if slabs else None

    def take_up_to(self, block_bytes: int, count: int, asker: Account | None = None) -> list[Slab]:
        """So many slabs, or as many as `take` would give one after the other, told of once."""
        return self._take(block_bytes, count, asker, unwritten=False)

    def take_spare(self, block_bytes: int, count: int) -> list[Slab]:
        """Up to so many slabs for which no block leaves but one-off ones."""
        slabs: list[Slab] = []
        evicted, slab_bytes = 0, self._arena.slab_bytes(block_bytes)
        while len(slabs) < count and evicted < count:
            slab = self._arena.allocate(block_bytes)
            if slab is None:
                victim = self._index.one_offs.first()
                if victim is None:
                    break
                slab = self._index.evict_host(victim)
                evicted += 1
                if slab.size_bytes != slab_bytes:
                    self._arena.free(slab)
                    continue
            slabs.append(slab)
        if evicted:
            self.evicted_count += evicted
            self._listener.blocks_evicted(Tier.HOST, evicted)
        return slabs

    def _take(
        self, block_bytes: int, count: int, asker: Account | None, unwritten: bool
    ) -> list[Slab]:
        """`unwritten`: what has to be written first leaves all the same.

        There is one order of leaving for blocks of all sizes. Where the next to leave has slabs of
        another size, a whole extent of such slabs is emptied, so no size starves another and none
        loses more than one extent for it.
        """
        slabs: list[Slab] = []
        evicted, slab_bytes = 0, self._arena.slab_bytes(block_bytes)
        while len(slabs) < count:
            slab = self._arena.allocate(block_bytes)
            borrows = slab is None and asker is not None and asker.over_host_soft
            if slab is None and self._ahead is None and not borrows:
                run = self._index.evict_host_run(slab_bytes, count - len(slabs))
                slabs += run
                evicted += len(run)
                if run:
                    continue
            if slab is None:
                slab, left = self._make_room(slab_bytes, asker, unwritten)
                if not left:
                    break
                evicted += left
            if slab is not None:
                slabs.append(slab)
        if evicted:
            self.evicted_count += evicted
            self._listener.blocks_evicted(Tier.HOST, evicted)
        if self._writer is not None:
            self._writer.wake()
        return slabs

    def _make_room(
        self, slab_bytes: int, asker: Account | None, unwritten: bool
    ) -> tuple[Slab | None, int]:
        """Evicts for one slab; returns the slab of who left, when it fits, and how many left: 0
        when none may."""
        index = self._index
        victim = index.host_victim(asker)
        while victim is not None and rounded(index.tree.payload_bytes(victim)) == slab_bytes:
            if self._may_leave([victim], unwritten):
                return index.evict_host(victim), 1
            held, victim = victim, index.host_victim(asker)
            if victim == held:
                return None, 0
        if victim is None:
            return None, 0
        rows = rows_of_extent(index, self._arena, slab_bytes, asker)
        if rows is None:
            leaf = leaf_of_size(index, self._arena, slab_bytes, asker)
            rows = [] if leaf is None else [leaf]
        return None, index.evict_host_rows(rows) if self._may_leave(rows, unwritten) else 0

    def _may_leave(self, rows: Sequence[int], unwritten: bool) -> bool:
        """Asks about all of them: those that must be written first are on their way then."""
        if self._ahead is None or self._writer is None:
            return True
        if not unwritten:
            may_leave = [self._ahead.may_leave(row) for row in rows]
            # Asking about one may have queued another that is before it, and so pinned it.
            if not all(may_leave) or any(map(self._index.tree.pins, rows)):
                return False
        on_ssd = self._index.tree.on_ssd
        self._writer.left_unwritten(sum(not on_ssd(row) for row in rows))
        return True

    def claim(
        self, account: Account, block_bytes: int, count: int, *, unwritten: bool = False
    ) -> int:
        """Claims room on the account for so many blocks, as many as its quota gives when its own
        least valuable leaves have left; how many. All are within the soft quota, or above it: the
        rest is another claim's. `unwritten`: those that should be written first leave all the same.
        """
        index, accounts, evicted = self._index, self._index.accounts, 0
        assert accounts is not None
        count = account.like_next(block_bytes, count)
        claimed = accounts.claim_host(account, block_bytes, count)
        while claimed < count:
            row = account.leaves.first()
            if row is None or not self._may_leave([row], unwritten):
                break
            self._arena.free(index.evict_host(row))
            evicted += 1
            claimed += accounts.claim_host(account, block_bytes, count - claimed)
        if evicted:
            self.evicted_count += evicted
            self._listener.blocks_evicted(Tier.HOST, evicted)
            self.changed()
        return claimed

    async def claim_waiting(
        self,
        account: Account,
        block_bytes: int,
        count: int,
        worth_waiting: Callable[[], bool],
        patience: float,
    ) -> int:
        """As `claim`, but waits, until `patience` ends, while it gets none and `worth_waiting()`
        says so. Then it goes by what is there."""
        account.waiting_count += 1
        try:
            claimed = self.claim(account, block_bytes, count)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(patience):
                    while not claimed and worth_waiting():
                        await self._change.wait()
                        claimed = self.claim(account, block_bytes, count)
            return claimed or self.claim(account, block_bytes, count, unwritten=True)
        finally:
            account.waiting_count -= 1

    def patience(self) -> float:
        """Until when a call that begins now may wait for room, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._wait_seconds

    async def take_waiting(
        self,
        block_bytes: int,
        worth_waiting: Callable[[], bool],
        patience: float,
        asker: Account | None = None,
    ) -> Slab | None:
        """As `take`, but waits, until `patience` ends, while `worth_waiting()` says so.

        Then it goes by what is there: a block that should be written first leaves unwritten.
        """
        slab = self.take(block_bytes, asker)
        if slab is not None:
            return slab
        if worth_waiting():
            self._listener.room_waited()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(patience):
                while slab is None and worth_waiting():
                    await self._change.wait()
                    slab = self.take(block_bytes, asker)
        if slab is None:
            slab = next(iter(self._take(block_bytes, 1, asker, unwritten=True)), None)
        return slab

    def give_back(self, slab: Slab) -> None:
        """Frees a slab that was taken and not used."""
        self._arena.free(slab)
        self.changed()

    def changed(self) -> None:
        """Something that was held may be free now."""
        change, self._change = self._change, asyncio.Event()
        change.set()
