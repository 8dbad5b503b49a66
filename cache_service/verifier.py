"""Verifier: recomputes checksums of slabs, off the event loop.

One thread and a bounded queue: at most `PENDING_MAX` verifications wait; a caller that must have an
answer waits its turn, a mere report is turned away. Reads slabs only, which the caller holds.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kvtier.keys import BlockHash, payload_checksum
from storage.host.arena import HostArena
from storage.tier import Slab

__all__ = ["Verifier"]

PENDING_MAX = 64


class Verifier:
    """xxh3-64 over the payloads in slabs."""

    def __init__(self, arena: HostArena) -> None:
        self._arena = arena
        self._thread = ThreadPoolExecutor(1, "checksum")
        self._turns = asyncio.Semaphore(PENDING_MAX)

    @property
    def crowded(self) -> bool:
        return self._turns.locked()

    async def matches(
        self,
        hashes: Sequence[BlockHash],
        slabs: Sequence[Slab],
        checksums: Sequence[int],
        payload_bytes: int,
    ) -> bool:
        """True when each slab's first `payload_bytes` have the checksum given for that block."""
        views = [self._arena.view(slab)[:payload_bytes] for slab in slabs]
        async with self._turns:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, _matches, list(hashes), views, list(checksums)
            )

    def close(self) -> None:
        self._thread.shutdown()


def _matches(hashes: list[BlockHash], views: list[memoryview], checksums: list[int]) -> bool:
    return all(
        payload_checksum(block_hash, view) == checksum
        for block_hash, view, checksum in zip(hashes, views, checksums, strict=True)
    )
