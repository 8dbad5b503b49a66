"""Verifier: recomputes checksums of slabs, off the event loop.

One thread and a bounded queue: at most `PENDING_MAX` verifications wait; a caller that must have an
answer waits its turn, a mere report is turned away. Reads slabs only, which the caller holds.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

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
        self, slabs: Sequence[Slab], checksums: Sequence[int], payload_bytes: int
    ) -> bool:
        """True when each slab's first `payload_bytes` have the given checksum."""
        views = [self._arena.view(slab)[:payload_bytes] for slab in slabs]
        async with self._turns:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, _matches, views, list(checksums)
            )

    def close(self) -> None:
        self._thread.shutdown()


def _matches(views: list[memoryview], checksums: list[int]) -> bool:
    return all(
        xxhash.xxh3_64_intdigest(view) == checksum
        for view, checksum in zip(views, checksums, strict=True)
    )
