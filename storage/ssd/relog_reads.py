"""Reads records that are to be written again, several at a time.

A record of 256 KiB takes the disk a third of a millisecond, and longer until the next is asked for.
Invariant: when `read` returns or raises, no thread touches the memory any more. Called from one
thread, the writer's.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from storage.errors import CorruptBlockError
from storage.ssd.files import aligned_buffer
from storage.ssd.format import RecordHeader
from storage.ssd.reader import BlockReader
from storage.tier import BlockRecord, SsdLocation, rounded

__all__ = ["RelogReads", "chunks"]

_THREADS = 4
_CHUNK_BYTES_MAX = 32 << 20

Place = tuple[BlockRecord, SsdLocation]


class RelogReads:
    """Threads that read. `close` it at the end."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="ssd-relog")

    def read(self, chunk: Sequence[Place]) -> list[tuple[RecordHeader, memoryview] | None]:
        """Header and stored bytes of each; None where it is corrupt. Raises TierIOError."""
        sizes = [rounded(location.stored_bytes) for _, location in chunk]
        buffer = aligned_buffer(sum(sizes))
        ends = itertools.accumulate(sizes)
        views = [buffer[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        reads = [
            self._executor.submit(self._intact, *each) for each in zip(chunk, views, strict=True)
        ]
        wait(reads)  # also for those behind one that failed
        headers = [read.result() for read in reads]
        return [
            None if header is None else (header, view)
            for header, view in zip(headers, views, strict=True)
        ]

    def close(self) -> None:
        self._executor.shutdown()

    def _intact(self, place: Place, into: memoryview) -> RecordHeader | None:
        try:
            return self._reader.read_stored(*place, into)
        except CorruptBlockError:
            return None


def chunks(items: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Runs of at most so many bytes; a larger single block is a run of its own."""
    start, size = 0, 0
    for i, (_, location) in enumerate(items):
        size += rounded(location.stored_bytes)
        if size > _CHUNK_BYTES_MAX and i > start:
            yield items[start:i]
            start, size = i, rounded(location.stored_bytes)
    if start < len(items):
        yield items[start:]
