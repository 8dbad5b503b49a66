"""Opens every segment file and reads its header page, many at a time.

A page takes the disk half a millisecond where others use it too: one after the other that was a
second for two thousand segments, spent waiting. Invariant: returns a descriptor for every segment
or raises with none left open. What a header means beside its index row: settling.py.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from storage.env import Env
from storage.ssd.directory import DataDirectory
from storage.ssd.files import TruncatedFileError, aligned_buffer, read_all
from storage.ssd.format import BadPageError, parse_segment_header
from storage.ssd.settling import Found
from storage.tier import PAGE_BYTES, SegmentId

__all__ = ["open_segments"]

_THREADS_MAX = 16
_SEGMENTS_PER_THREAD_MIN = 32


def open_segments(
    env: Env, directory: DataDirectory, segment_count: int
) -> list[tuple[int, Found]]:
    """A descriptor and what the header page says, by segment id. Raises OSError."""
    opened: dict[int, int] = {}
    thread_count = min(_THREADS_MAX, max(1, segment_count // _SEGMENTS_PER_THREAD_MIN))
    part_size = max(1, -(-segment_count // thread_count))
    parts = [
        range(start, min(start + part_size, segment_count))
        for start in range(0, segment_count, part_size)
    ]
    try:
        if len(parts) <= 1:
            found = [_open_part(env, directory, opened, part) for part in parts]
        else:
            # Leaving the pool waits for every thread, also when one of them has failed.
            with ThreadPoolExecutor(len(parts), thread_name_prefix="kvtier-ssd-open") as pool:
                found = list(pool.map(lambda part: _open_part(env, directory, opened, part), parts))
    except BaseException:
        for fd in opened.values():
            with contextlib.suppress(OSError):
                env.close(fd)
        raise
    return [(opened[number], said) for number, said in enumerate(chain.from_iterable(found))]


def _open_part(
    env: Env, directory: DataDirectory, opened: dict[int, int], numbers: Sequence[int]
) -> list[Found]:
    """Notes every descriptor in `opened` at once, for who has to close them."""
    page = aligned_buffer(PAGE_BYTES)
    found = []
    for number in numbers:
        opened[number] = directory.open_segment(SegmentId(number))
        found.append(_found(env, directory, SegmentId(number), opened[number], page))
    return found


def _found(
    env: Env, directory: DataDirectory, segment_id: SegmentId, fd: int, page: memoryview
) -> Found:
    try:
        read_all(env, fd, [page], 0)
        header = parse_segment_header(page, segment_id)
    except (OSError, TruncatedFileError, BadPageError) as error:
        return Found(damage=f"its header page is unusable ({error})")
    if header is not None and header.segment_bytes != directory.segment_bytes:
        return Found(damage=f"its header page says {header.segment_bytes} bytes")
    return Found(header)
