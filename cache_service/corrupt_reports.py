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

from cache_service.parts import Parts
from cache_service.side import Side
from kvtier.blocks import MissReason, Tier

__all__ = ["CorruptReports"]


class CorruptReports(Side):
    """Reports being checked."""

    def __init__(self, parts: Parts) -> None:
        self._index = parts.index
        self._verifier = parts.verifier
        self._writer = parts.writer
        self._listener = parts.tally
        self._checks: dict[asyncio.Task[None], list[int]] = {}

    def take(self, rows: Iterable[int]) -> None:
        """Checks the blocks in the background. REQUIRES: each is pinned by the caller now."""
        tree = self._index.tree
        held = [row for row in rows if tree.cached(row) and tree.in_host(row)]
        if not held or self._verifier.crowded:
            return
        for row in held:
            self._index.pin(row)
        task = asyncio.get_running_loop().create_task(self._check(held))
        self._checks[task] = held
        task.add_done_callback(self._checks.pop)

    async def drain(self) -> None:
        while self._checks:
            await asyncio.wait(set(self._checks))

    def pins(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for held in self._checks.values():
            for row in held:
                counts[row] = counts.get(row, 0) + 1
        return counts

    async def _check(self, held: list[int]) -> None:
        tree = self._index.tree
        try:
            while held:
                row = held[-1]
                if tree.cached(row) and not await self._intact(row) and tree.cached(row):
                    self._drop(row)
                self._index.unpin(held.pop())
        finally:
            while held:
                self._index.unpin(held.pop())

    async def _intact(self, row: int) -> bool:
        tree = self._index.tree
        return await self._verifier.matches(
            [tree.block_hash(row)], [tree.slab(row)], [tree.checksum(row)], tree.payload_bytes(row)
        )

    def _drop(self, row: int) -> None:
        self._listener.block_corrupt(Tier.HOST)
        forgotten = self._index.drop(row, MissReason.CORRUPT)
        if self._writer is not None:
            self._writer.forget(forgotten)
