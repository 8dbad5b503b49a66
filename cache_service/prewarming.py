"""Prewarming: brings a prefix from the SSD into host memory before anybody asks for it.

    chain up to a block -> what host memory lacks of it, within the budget -> a group at a time

It waits its turn among the reads of acquires (`storage/ssd/read_order.py`) and counts no use, so
what it brought leaves like a block that was used as often as it was. Rows are looked up again for
each group: it holds nothing between two.

Invariant: at most one runs; it changes nothing but where copies are. Event loop only.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from cache_service.block_tree import ABSENT
from cache_service.errors import BlockNotCachedError, PrewarmRunningError
from cache_service.parts import Parts
from cache_service.side import Side
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.ssd.read_order import ReadFlow

__all__ = ["PrewarmView", "Prewarming"]

GROUP_BYTES = 16 << 20
"""Brought before progress is told."""

LOAD_SECONDS_MAX = 60.0
"""A disk that gives nothing for so long gives nothing."""

ARENA_SHARE = 4
"""Without a budget, at most one part in so many of host memory."""


@dataclass(frozen=True, slots=True)
class PrewarmView:
    """How far it is. Counts of blocks of the prefix."""

    block_count: int
    host_count: int
    """Were in host memory already."""
    wanted_count: int
    """Are to be brought: the others, as far as the budget goes."""
    loaded_count: int
    loaded_bytes: int
    """Payload."""
    done: bool = False
    reason: MissReason = MissReason.NONE
    """Why it ended early."""


class Prewarming(Side):
    """One prewarm at a time."""

    def __init__(self, parts: Parts) -> None:
        self._index = parts.index
        self._arena = parts.arena
        self._promoter = parts.promoter
        self._health = parts.health
        self._running = False
        self._stopped = False

    def stop(self) -> None:
        """Ends one that runs after its group."""
        self._stopped = True

    async def prewarm(
        self, namespace_id: NamespaceId, block_hash: BlockHash, bytes_max: int
    ) -> AsyncGenerator[PrewarmView, None]:
        """Brings that block and all before it, first ones first; 0: the budget is a quarter of host
        memory. Views as it goes, the last one `done`.

        Raises BlockNotCachedError, PrewarmRunningError before the first.
        """
        tree = self._index.tree
        row = tree.find(block_hash)
        if row == ABSENT or tree.namespace_id(row) != namespace_id:
            raise BlockNotCachedError("no block of that name is cached in that namespace")
        if self._running:
            raise PrewarmRunningError("another prefix is being prewarmed: wait for its end")
        rows = [*reversed([*tree.ancestors(row)]), row]
        size = tree.payload_bytes(row)
        budget = bytes_max or self._arena.capacity_bytes // ARENA_SHARE
        missing = [each for each in rows if not tree.in_host(each)]
        names = [tree.block_hash(each) for each in missing[: budget // self._slab_bytes(size)]]
        counts = len(rows), len(rows) - len(missing), len(names)
        self._running = True
        try:
            loaded = 0
            yield PrewarmView(*counts, 0, 0)
            group = max(1, GROUP_BYTES // size)
            for start in range(0, len(names), group):
                part = names[start : start + group]
                reason = await self._bring(part)
                loaded += sum(self._in_host(name) for name in part)
                if reason is not MissReason.NONE:
                    break
                yield PrewarmView(*counts, loaded, loaded * size)
            else:
                reason = MissReason.NONE
            yield PrewarmView(*counts, loaded, loaded * size, True, reason)
        finally:
            self._running = False

    def _slab_bytes(self, block_bytes: int) -> int:
        return self._arena.slab_bytes(block_bytes)

    def _in_host(self, name: BlockHash) -> bool:
        row = self._index.tree.find(name)
        return row != ABSENT and self._index.tree.in_host(row)

    async def _bring(self, names: list[BlockHash]) -> MissReason:
        """Why the first one that is not there is not; NONE when all are."""
        tree, flow = self._index.tree, ReadFlow()
        for position, name in enumerate(names):
            while not self._in_host(name):
                if self._stopped or self._promoter is None or not self._health.available:
                    return MissReason.UNAVAILABLE
                row = tree.find(name)
                if row == ABSENT:
                    return self._index.absences.reason(name)
                if not tree.on_ssd(row):
                    return MissReason.EVICTED
                found = [tree.find(each) for each in names[position:]]
                wanted = [
                    each
                    for each in found
                    if each != ABSENT and tree.on_ssd(each) and not tree.in_host(each)
                ]
                load = self._promoter.load(wanted, flow)
                # Waiting does not cancel: others may want the blocks.
                await asyncio.wait({load}, timeout=LOAD_SECONDS_MAX)
                if not load.done():
                    return MissReason.DEADLINE
                if load.result() is not MissReason.NONE:
                    return load.result()
                if not self._in_host(name):
                    # It came and had to leave again: there is no room for more of it.
                    return MissReason.ARENA_FULL
        return MissReason.NONE
