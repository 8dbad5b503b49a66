"""HostRoom: slabs for blocks that want into host memory, made free by evicting leaves.

Invariant: only what the index gives up is freed; a held block (leased, reserved behind, being
written or read) never is. When everything is held by writes that are on their way to the SSD, a
taker may wait for them, for a bounded time. Event loop only.
"""

import asyncio
from collections.abc import Callable

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
        """A slab, evicting the leaves worth least until there is one; None when all are held.

        Leaves of another slab size are evicted too, in the one order of the tier: they give their
        extent back when its last slab is free, so no size starves another.
        """
        evicted = 0
        while (slab := self._arena.allocate(block_bytes)) is None:
            if self._index.evict_host() is None:
                break
            evicted += 1
        if evicted:
            self.evicted_count += evicted
            self._listener.blocks_evicted(Tier.HOST, evicted)
        return slab

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
