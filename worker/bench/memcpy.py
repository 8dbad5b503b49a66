"""The limit on one host: one thread copies block by block between private and shared memory."""

import time

import numpy as np

from worker.bench.memory import PathMemory
from worker.bench.turns import Turn, seconds
from worker.landing import PageBytes

__all__ = ["Memcpy"]


class Memcpy:
    """Sources to shared memory is its store, shared memory to targets its restore."""

    def __init__(self, memory: PathMemory, single_blocks: int) -> None:
        self._memory = memory
        self._single_blocks = single_blocks

    def store(self) -> None:
        """One way, whole."""
        _copy(self._memory.sources, self._memory.shared)

    def turn(self, number: int) -> Turn:
        """As `Contender.turn`; every turn does the same."""
        store_seconds = seconds(self.store)
        self._memory.forget()
        restore_seconds = seconds(lambda: _copy(self._memory.shared, self._memory.targets))
        self._memory.verify("memcpy")
        singles = tuple(self._copy_one(number, i) for i in range(self._single_blocks))
        return Turn(store_seconds, restore_seconds, singles, {})

    def _copy_one(self, number: int, i: int) -> float:
        at = (number + i * 7) % self._memory.count
        began = time.perf_counter()
        np.copyto(self._memory.targets[at], self._memory.shared[at])
        return time.perf_counter() - began


def _copy(sources: list[PageBytes], targets: list[PageBytes]) -> None:
    for source, target in zip(sources, targets, strict=True):
        np.copyto(target, source)
