"""Somebody who looks at the sizes of the segment files all the time, from a thread of his own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["watched_capacity"]


@contextmanager
def watched_capacity(directory: Path, capacity_bytes: int) -> Iterator[None]:
    """Fails at its end if the files in `directory`/segments ever were more than that together."""
    sums: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            sizes: dict[int, int] = {}  # by file: one that is just renamed is seen twice
            for path in (directory / "segments").glob("*"):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    sizes[found.st_ino] = found.st_size
            sums.append(sum(sizes.values()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert max(sums, default=0) <= capacity_bytes, "the files passed the capacity"
