"""Memory of the path benchmark: a prefix to store and pages to restore it into, a worker's own.

Pages are plain private memory, as torch's are on a CPU, touched before. What the limit copies to
and from is a shared memory file, as the arena is one. Invariant: sources never change, so what
comes back can be compared. Owned by one thread.
"""

import hashlib
import mmap
import os

import numpy as np

from kvtier.bench.errors import BenchError
from kvtier.keys import BlockHash
from worker.landing import PageBytes

__all__ = ["PathMemory"]


class PathMemory:
    """`sources`, `targets` and `shared`: as many blocks each as fit the prefix."""

    def __init__(self, block_bytes: int, prefix_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.count = prefix_bytes // block_bytes
        self.size = self.count * block_bytes
        self._source = _private(self.size)
        self._source[:] = np.random.default_rng(7).integers(0, 256, self.size, dtype=np.uint8)
        self._target = _private(self.size)
        self.sources = self._blocks(self._source)
        self.targets = self._blocks(self._target)
        self.shared = self._blocks(_shared(self.size))

    def chain(self, number: int) -> list[BlockHash]:
        """The names of turn `number`'s blocks; no two turns share one."""
        return [
            BlockHash(hashlib.sha256(b"%d/%d" % (number, i)).digest()) for i in range(self.count)
        ]

    def forget(self) -> None:
        """Clears the targets, so that `verify` sees what came since."""
        self._target[:] = 0

    def verify(self, who: str) -> None:
        """Raises BenchError unless every target has its source's bytes."""
        if not np.array_equal(self._source, self._target):
            raise BenchError(f"{who}: a restored byte differs")

    def _blocks(self, data: PageBytes) -> list[PageBytes]:
        return [data[o : o + self.block_bytes] for o in range(0, self.size, self.block_bytes)]


def _private(size: int) -> PageBytes:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return np.frombuffer(mmap.mmap(-1, size, flags), dtype=np.uint8)


def _shared(size: int) -> PageBytes:
    descriptor = os.memfd_create("kvtier-bench")
    try:
        os.ftruncate(descriptor, size)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return np.frombuffer(mmap.mmap(descriptor, size, flags), dtype=np.uint8)
    finally:
        os.close(descriptor)
