"""Moves block payloads between the cache service's arena and the engine's pages.

Every copy returns the checksum of the *page*, never of the slab: on the way in that is what the
engine will compute with, on the way out what the engine meant. A slab that someone else scribbles
on can so end in a mismatch, never in wrong bytes with a right checksum.

Copies are summed while they are made (`copy_kernel.py`), some blocks in one call. What that does
not take is copied by NumPy in pieces that stay in the CPU's cache for xxhash. All of them release
the interpreter lock, so `CopyLanes` scales over threads.

State: `ArenaMap` is immutable after construction; `CopyLanes` owns its threads. Any thread.
"""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvtier.keys import BlockHash, checksum_seed, payload_checksum
from kvtier.memory import mapped
from worker.copy_kernel import load_kernel
from worker.landing import PageBytes

__all__ = [
    "ArenaMap",
    "CopyLanes",
    "NonsenseError",
    "TimeUpError",
    "answered",
    "copy_hashed",
    "copy_one_hashed",
    "leading_equal",
    "page_checksum",
]

Message = TypeVar("Message")

PIECE_BYTES = 512 * 1024

PART_BYTES = 2 * 1024 * 1024
"""What a thread copies at a time, without the interpreter lock and without a look at the clock."""

PREFAULT_STRIDE_BYTES = 4096
PREFAULT_SLICE_BYTES = 64 * 1024 * 1024


class NonsenseError(Exception):
    """The service answered something the contract rules out; nothing it said is used."""


def answered(message: Message | None) -> Message:
    """What a call brought: gRPC gives None where a status OK comes without its message. Raises
    NonsenseError."""
    if message is None:
        raise NonsenseError("the service said OK without an answer")
    return message


class TimeUpError(Exception):
    """The caller's deadline passed on our side; says nothing about the service."""


class ArenaMap:
    """The service's arena in this process. Unmapped when the last slab view is gone."""

    def __init__(self, descriptor: int, arena_bytes: int, block_bytes: int) -> None:
        """Maps `descriptor` (the caller closes it). Raises NonsenseError, OSError.

        REQUIRES for safety: sealed against shrinking, so that no access here can fault.
        """
        if os.fstat(descriptor).st_size < arena_bytes or arena_bytes < block_bytes:
            raise NonsenseError("the arena is smaller than the service says")
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise NonsenseError("the arena is not sealed against shrinking")
        self._block_bytes = block_bytes
        self._bytes = np.frombuffer(mapped(descriptor, arena_bytes), dtype=np.uint8)

    @property
    def addresses(self) -> tuple[int, int]:
        """Where it begins, and the one past its end."""
        start: int = self._bytes.__array_interface__["data"][0]
        return start, start + len(self._bytes)

    def slab(self, offset: int) -> PageBytes:
        """The payload at `offset`. Raises NonsenseError outside the arena."""
        if not 0 <= offset <= len(self._bytes) - self._block_bytes:
            raise NonsenseError(f"slab offset {offset} is outside the arena")
        return self._bytes[offset : offset + self._block_bytes]

    def prefault(self, wanted: Callable[[], bool]) -> None:
        """Touches every page once, so that the first copy does not pay for it.

        Reads only. Stops early when `wanted` says no.
        """
        for start in range(0, len(self._bytes), PREFAULT_SLICE_BYTES):
            if not wanted():
                return
            self._bytes[start : start + PREFAULT_SLICE_BYTES : PREFAULT_STRIDE_BYTES].max()


def copy_hashed(
    blocks: Sequence[BlockHash],
    sources: Sequence[PageBytes],
    targets: Sequence[PageBytes],
    pages: Sequence[PageBytes],
) -> Sequence[int]:
    """Copies each source to its target; the checksums of `pages`, one of the two, as those blocks'.

    Raises ValueError, before a byte moves, unless there is one of each for each block and all are
    of one size: what copies looks at addresses alone.
    """
    sizes = {len(each) for side in (sources, targets) for each in side}
    if len(sizes) > 1 or not len(blocks) == len(sources) == len(targets) == len(pages):
        raise ValueError("blocks, sources and targets that do not fit each other")
    kernel = load_kernel()
    if kernel is not None and blocks:
        size, to = len(targets[0]), _addresses(targets)
        if kernel.fits(size, to):
            seeds = np.array([checksum_seed(block) for block in blocks], np.uint64)
            return kernel.copy(_addresses(sources), to, size, seeds)
    return list(map(copy_one_hashed, blocks, sources, targets, pages))


def _addresses(arrays: Sequence[PageBytes]) -> NDArray[np.uint64]:
    return np.array([array.__array_interface__["data"][0] for array in arrays], np.uint64)


def copy_one_hashed(block: BlockHash, source: PageBytes, target: PageBytes, page: PageBytes) -> int:
    """The same of one block of any size, by NumPy and xxhash."""
    if len(source) <= PIECE_BYTES:
        np.copyto(target, source)
        return page_checksum(block, page)
    digest = xxhash.xxh3_64(seed=checksum_seed(block))
    for start in range(0, len(source), PIECE_BYTES):
        end = start + PIECE_BYTES
        np.copyto(target[start:end], source[start:end])
        digest.update(page[start:end].data)
    return digest.intdigest()


def leading_equal(found: Sequence[int], right: Sequence[int]) -> int:
    """How many leading checksums are right. REQUIRES: equally many."""
    each = enumerate(zip(found, right, strict=True))
    return next((at for at, (one, other) in each if one != other), len(right))


def page_checksum(block_hash: BlockHash, page: PageBytes) -> int:
    """The checksum of a page as that block's."""
    return payload_checksum(block_hash, page.data)


class CopyLanes:
    """Spreads the blocks of one call over threads: the caller's own and `lanes - 1` helpers."""

    def __init__(self, lanes: int) -> None:
        load_kernel()  # compiles it now, and not in somebody's request
        self._lanes = max(1, lanes)
        self._helpers = ThreadPoolExecutor(self._lanes, thread_name_prefix="cache-copy")

    def run(self, count: int, work: Callable[[int], bool]) -> int:
        """Calls `work(0..count-1)`; returns how many leading calls were True.

        Work past the first False is left out where it has not begun. What `work` raises, is raised.
        """
        indexes = itertools.count()
        failed: list[int] = []

        def lane() -> None:
            # next() on a C iterator is one step under the interpreter lock: no index comes twice.
            # An index below a failed one is always worked off: the leading count depends on it.
            while (index := next(indexes)) < min(failed, default=count):
                try:
                    done = work(index)
                except BaseException:
                    failed.append(index)
                    raise
                if not done:
                    failed.append(index)

        helpers = [self._helpers.submit(lane) for _ in range(min(self._lanes, count) - 1)]
        try:
            lane()
        finally:
            # Helpers that never got a thread have nothing to add any more; the others still hold
            # views of the caller's pages, so they are waited for also when this lane raised.
            running = [helper for helper in helpers if not helper.cancel()]
            wait(running)
        for helper in running:
            helper.result()
        return min(failed, default=count)

    def run_parts(self, count: int, each_bytes: int, work: Callable[[int, int], int]) -> int:
        """Calls `work(first, end)` for parts of `range(count)`, whose items have so many bytes; it
        returns how many leading ones are done. How many leading ones are of all; else as `run`."""
        even = -(-count // self._lanes)
        size = max(1, min(even, PART_BYTES // max(1, each_bytes)))
        done: dict[int, int] = {}

        def work_part(index: int) -> bool:
            first = index * size
            end = min(count, first + size)
            done[index] = work(first, end)
            return done[index] == end - first

        whole = self.run(-(-count // size), work_part)
        return min(count, whole * size + done.get(whole, 0))

    @contextlib.contextmanager
    def beside(self, work: Callable[[], None]) -> Iterator[None]:
        """Helpers call `work` while the body runs, and the caller's thread when it has. Ends when
        all of them have returned, also where the body raises. What `work` raises, is raised."""
        helpers = [self._helpers.submit(work) for _ in range(self._lanes - 1)]
        try:
            yield
            work()
        finally:
            running = [helper for helper in helpers if not helper.cancel()]
            wait(running)
        for helper in running:
            helper.result()

    def close(self) -> None:
        self._helpers.shutdown(wait=True)
