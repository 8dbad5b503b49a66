"""Host memory of the benchmark: payloads to store, slabs to restore into, a worker's own pages.

Invariant: sources never change, so what was stored can be verified by its checksum for ever.
Sources and targets are slabs of two arenas, page-aligned and touched before. Any thread.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from kvtier.keys import BlockHash, payload_checksum
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
        # What seeds a checksum is the name's beginning: one for each source, known before any is
        # stored, as a worker's are.
        self._seeds = [at.to_bytes(8, "little") for at in range(len(self._sources))]
        self._checksums = list(map(payload_checksum, self._seeds, self._sources))

    def source(self, number: int) -> tuple[memoryview, int]:
        """A payload and its checksum; they come round again."""
        at = number % len(self._sources)
        return self._sources[at], self._checksums[at]

    def block_hash(self, number: int) -> BlockHash:
        """A name under which that source's checksum is right."""
        seed = self._seeds[number % len(self._sources)]
        return BlockHash(seed + hashlib.sha256(b"%d" % number).digest()[8:])

    def copy_out(self, numbers: Iterable[int]) -> None:
        """Copies sources into a page of one's own and verifies the copy. Blocks."""
        page = np.zeros(self._sources[0].nbytes, np.uint8)
        for number in numbers:
            view, checksum = self.source(number)
            np.copyto(page, np.frombuffer(view, np.uint8))
            if payload_checksum(self.block_hash(number), page.data) != checksum:
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
