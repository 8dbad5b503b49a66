"""How long an arena takes to start: huge pages at once, small ones first, and no huge ones.

    python benchmarks/bench_arena_start.py [GiB]

Prints seconds a GiB, medians of 5 in turn, and how much lay in huge pages. The first run of a
machine that has not used its memory yet is slower for all of them.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable

from kvtier.memory import HUGE_PAGE_BYTES, collapse, huge_bytes, mapped, populate
from storage.host.pages import take_pages

ROUNDS = 5


def small_pages(fd: int, view: memoryview) -> None:
    os.posix_fallocate(fd, 0, view.nbytes)
    populate(view)


def small_first(fd: int, view: memoryview) -> None:
    small_pages(fd, view)
    with contextlib.suppress(OSError):
        collapse(view[: view.nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES])


WAYS: dict[str, Callable[[int, memoryview], None]] = {
    "huge at once": take_pages,
    "small, made huge": small_first,
    "small": small_pages,
}


def measured(way: Callable[[int, memoryview], None], size_bytes: int) -> tuple[float, int]:
    fd = os.memfd_create("bench-arena")
    try:
        os.ftruncate(fd, size_bytes)
        began = time.perf_counter()
        view = mapped(fd, size_bytes)
        way(fd, view)
        return time.perf_counter() - began, huge_bytes(view)
    finally:
        os.close(fd)


def main() -> None:
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    size_bytes = int(gib * (1 << 30))
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            found[name].append(measured(way, size_bytes))
    for name, runs in found.items():
        seconds = statistics.median(run[0] for run in runs) / gib
        share = statistics.median(run[1] for run in runs) / size_bytes
        print(f"{name:18s} {seconds:6.3f} s/GiB   {share:4.0%} in huge pages")


if __name__ == "__main__":
    main()
