"""The pages of the arena: all taken at start, huge ones where the kernel has them.

Every byte gets its page before anybody waits for it: a first touch costs several times a copy. A
huge page is had from a stretch with one small page in it, which the kernel then makes whole: four
times as fast as giving it all its small pages first (`benchmarks/bench_arena_start.py`).

Invariant: memory that is not there is an OSError here and not a fault at its first touch. Opening
thread.
"""

import errno
import os

from kvtier.memory import HUGE_PAGE_BYTES, collapse, populate
from storage.tier import PAGE_BYTES

__all__ = ["take_pages"]

_STRETCH_BYTES = 64 << 20
"""Asked for at a time: for each request the kernel stops to empty lists of every processor."""

_REFUSALS_MAX = 4
"""Stretches without huge pages before none is asked for: looking for them takes its time."""


def take_pages(fd: int, view: memoryview) -> None:
    """Gives a memory file that is mapped as `view` all its pages. Raises OSError."""
    whole, refusals = view.nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, 0
    for start in range(0, whole, _STRETCH_BYTES):
        end = min(start + _STRETCH_BYTES, whole)
        for at in range(start, end, HUGE_PAGE_BYTES):
            os.posix_fallocate(fd, at, PAGE_BYTES)
        try:
            collapse(view[start:end])
        except OSError as error:
            refusals += 1
            if error.errno == errno.EINVAL or refusals == _REFUSALS_MAX:
                break
    os.posix_fallocate(fd, 0, view.nbytes)
    populate(view)
