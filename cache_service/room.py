"""HostRoom: slabs for blocks that want into host memory, made free by evicting leaves.

Invariant: only what the index gives up is freed; a held block (leased, reserved behind, being
written or read) never is. When everything is held by writes that are on their way to the SSD, a
taker may wait for them, for a bounded time. Event loop only.
"""

import asyncio
from collections.abc import Callable

from cache_service.extent_reclaim import leaf_of_size, rows_of_extent
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from kvtier.blocks import Tier
from storage.host.arena import HostArena
from storage.tier import Slab

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
        self.evicted_count = 0

    def take(self, block_bytes: int) -> Slab | None:
        """A slab, evicting what is worth least until there is one; None when all is held.

        There is one order of leaving for blocks of all sizes. Where the next to leave has slabs of
        another size, a whole extent of such slabs is emptied, so no size starves another and none
        loses more than one extent for it.
        """
        evicted = 0
        while (slab := self._arena.allocate(block_bytes)) is None:
            left = self._make_room(self._arena.slab_bytes(block_bytes))
            if not left:
                break
            evicted += left
        if evicted:
            self.evicted_count += evicted
            self._listener.blocks_evicted(Tier.HOST, evicted)
        return slab

    def _make_room(self, slab_bytes: int) -> int:
        """Evicts for one slab; returns how many blocks left, 0 when none may."""
        index = self._index
        victim = index.host_victim()
        if victim is None:
            return 0
        if index.tree.slab(victim).size_bytes == slab_bytes:
            return 1 if index.evict_host() is not None else 0
        rows = rows_of_extent(index, self._arena, slab_bytes)
        if rows is None:
            leaf = leaf_of_size(index, self._arena, slab_bytes)
            rows = [] if leaf is None else [leaf]
        return index.evict_host_rows(rows)

    def patience(self) -> float:
        """Until when a call that begins now may wait for room, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._wait_seconds

    async def take_waiting(
        self, block_bytes: int, worth_waiting: Callable[[], bool], patience: float
    ) -> Slab | None:
        """As `take`, but waits, until `patience` ends, while `worth_waiting()` says so."""
        slab = self.take(block_bytes)
        if slab is not None or not worth_waiting():
            return slab
        try:
            async with asyncio.timeout_at(patience):
                while slab is None and worth_waiting():
                    await self._change.wait()
                    slab = self.take(block_bytes)
        except TimeoutError:
            return None
        return slab

    def give_back(self, slab: Slab) -> None:
        """Frees a slab that was taken and not used."""
        self._arena.free(slab)
        self.changed()

    def changed(self) -> None:
        """Something that was held may be free now."""
        change, self._change = self._change, asyncio.Event()
        change.set()
