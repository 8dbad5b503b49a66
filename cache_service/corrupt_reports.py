"""CorruptReports: what a client says about a block is checked before it is believed.

A client that read bad bytes names the blocks when it releases its lease. Dropping them on its word
alone would let any client empty the cache of others, so the service recomputes the checksum of the
slab itself (off the loop) and drops the block, with everything after it, from every tier only when
the bytes really do not match. A report that comes while too many wait is ignored: the next reader
will report again.

Invariant: a block is pinned while it is checked. Event loop; checksums on the verifier's thread.
"""

import asyncio
from collections.abc import Iterable

from cache_service.block import Block
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.ssd_writer import SsdWriter
from cache_service.verifier import Verifier
from kvtier.blocks import MissReason, Tier

__all__ = ["CorruptReports"]


class CorruptReports:
    """Reports being checked."""

    def __init__(
        self,
        index: BlockIndex,
        verifier: Verifier,
        writer: SsdWriter | None,
        listener: CacheListener,
    ) -> None:
        self._index = index
        self._verifier = verifier
        self._writer = writer
        self._listener = listener
        self._checks: dict[asyncio.Task[None], list[Block]] = {}

    def take(self, blocks: Iterable[Block]) -> None:
        """Checks the blocks in the background. REQUIRES: each is pinned by the caller now."""
        held = [block for block in blocks if block.cached and block.slab is not None]
        if not held or self._verifier.crowded:
            return
        for block in held:
            self._index.pin(block)
        task = asyncio.get_running_loop().create_task(self._check(held))
        self._checks[task] = held
        task.add_done_callback(self._checks.pop)

    async def drain(self) -> None:
        while self._checks:
            await asyncio.wait(set(self._checks))

    def pins(self) -> dict[Block, int]:
        counts: dict[Block, int] = {}
        for held in self._checks.values():
            for block in held:
                counts[block] = counts.get(block, 0) + 1
        return counts

    async def _check(self, held: list[Block]) -> None:
        while held:
            block = held[-1]
            try:
                if block.cached and not await self._intact(block) and block.cached:
                    self._drop(block)
            finally:
                held.pop()
                self._index.unpin(block)

    async def _intact(self, block: Block) -> bool:
        assert block.slab is not None
        return await self._verifier.matches([block.slab], [block.checksum], block.payload_bytes)

    def _drop(self, block: Block) -> None:
        self._listener.block_corrupt(Tier.HOST)
        forgotten = self._index.drop(block, MissReason.CORRUPT)
        if self._writer is not None:
            self._writer.forget(forgotten)
