"""Host memory of the benchmark: payloads to store, slabs to restore into, a worker's own pages.

Invariant: sources never change, so what was stored can be verified by its checksum for ever.
Sources and targets are slabs of two arenas, page-aligned and touched before. Any thread.
"""

from collections.abc import Iterable

import numpy as np
import xxhash

from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES, rounded

__all__ = ["BlockMemory"]

_SOURCE_BYTES = 128 << 20
_TARGET_BYTES = 128 << 20


class BlockMemory:
    """Memory for blocks of one size. `close` it at the end."""

    def __init__(self, block_bytes: int) -> None:
        if block_bytes % PAGE_BYTES:
            raise ValueError("the benchmark takes blocks of whole pages")
        self._arenas = [HostArena(size, block_bytes) for size in (_SOURCE_BYTES, _TARGET_BYTES)]
        self._sources, self.targets = (_slabs(arena, block_bytes) for arena in self._arenas)
        random = np.random.default_rng(7)
        for view in self._sources:
            view[:] = random.bytes(view.nbytes)
        self._checksums = [xxhash.xxh3_64_intdigest(view) for view in self._sources]

    def source(self, number: int) -> tuple[memoryview, int]:
        """A payload and its checksum; they come round again."""
        at = number % len(self._sources)
        return self._sources[at], self._checksums[at]

    def copy_out(self, numbers: Iterable[int]) -> None:
        """Copies sources into a page of one's own and verifies the copy. Blocks."""
        page = np.zeros(self._sources[0].nbytes, np.uint8)
        for number in numbers:
            view, checksum = self.source(number)
            np.copyto(page, np.frombuffer(view, np.uint8))
            if xxhash.xxh3_64_intdigest(page.data) != checksum:
                raise SystemExit("a block of the benchmark came back wrong")

    def close(self) -> None:
        """Gives the memory back."""
        self._sources.clear()
        self.targets.clear()
        for arena in self._arenas:
            arena.close()


def _slabs(arena: HostArena, block_bytes: int) -> list[memoryview]:
    views = []
    while (slab := arena.allocate(rounded(block_bytes))) is not None:
        views.append(arena.view(slab))
    return views
