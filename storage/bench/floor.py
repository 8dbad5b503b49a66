"""The floor under a cold restore: read the same bytes in the same runs, hash them, do nothing else.

What a program pays that believes nothing it reads, without an index, headers, a queue or an event
loop. Two threads, as the tier has by default, on fio's file. Blocks.
"""

import itertools
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtier.keys import payload_checksums
from storage.bench.meter import Cost, measured
from storage.ssd.reader import RUN_BYTES_MAX
from storage.tier import PAGE_BYTES

__all__ = ["VerifiedRead"]

_THREADS = 2
_NAME = bytes(32)


@dataclass(frozen=True, slots=True)
class VerifiedRead:
    """A part of a file, read as if records of one block size lay in it."""

    path: Path
    offset: int
    size_bytes: int
    direct: bool

    def run(self, targets: Sequence[memoryview]) -> Cost:
        """Reads it into `targets`, round and round, and hashes each of them. Raises OSError."""
        block_bytes = targets[0].nbytes
        record_bytes = block_bytes + PAGE_BYTES
        share = self.size_bytes // record_bytes // _THREADS
        blocks = max(1, min(RUN_BYTES_MAX // block_bytes, len(targets) // _THREADS, share))
        run_bytes = blocks * record_bytes
        count = max(1, self.size_bytes // run_bytes)
        numbers = itertools.count()
        failed: list[OSError] = []
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        descriptor = os.open(self.path, flags)

        def work() -> None:
            headers = memoryview(mmap.mmap(-1, PAGE_BYTES))
            # next() on a C iterator is one step under the interpreter lock.
            while (number := next(numbers)) < count and not failed:
                first = number * blocks % (len(targets) - blocks + 1)
                into = targets[first : first + blocks]
                buffers = [each for target in into for each in (headers, target)]
                try:
                    if os.preadv(descriptor, buffers, self.offset + number * run_bytes) < run_bytes:
                        raise OSError("the file ends in the middle of a run")
                except OSError as error:
                    failed.append(error)
                    return
                payload_checksums([_NAME] * blocks, into)

        threads = [threading.Thread(target=work) for _ in range(_THREADS)]
        try:
            with measured() as cost:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            os.close(descriptor)
        if failed:
            raise failed[0]
        cost.payload_bytes = count * blocks * block_bytes
        return cost
