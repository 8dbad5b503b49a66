"""Whole reads and writes between aligned memory and a segment file.

Invariant: `write_all` and `read_all` either move every byte or raise; a short system call is
continued where it stopped. Stateless, any thread.
"""

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np

from storage.env import Buffer, Env
from storage.tier import PAGE_BYTES

__all__ = [
    "Scratch",
    "TruncatedFileError",
    "aligned_buffer",
    "aligned_pages",
    "check_aligned",
    "read_all",
    "write_all",
]

_BUFFERS_PER_CALL_MAX = 512
"""Half of the kernel's limit (IOV_MAX)."""


class TruncatedFileError(Exception):
    """The file ends before the bytes that were asked for. Stays inside the SSD room."""


class Scratch:
    """Aligned memory of one thread; grows to the largest size it was asked for."""

    def __init__(self) -> None:
        self._view = memoryview(b"")

    def take(self, size_bytes: int) -> memoryview:
        """`size_bytes` of whatever is in it; the next call gives the same memory again."""
        if self._view.nbytes < size_bytes:
            self._view = aligned_buffer(size_bytes)
        return self._view[:size_bytes]


def aligned_buffer(size_bytes: int) -> memoryview:
    """Zeroed, page-aligned, writable memory."""
    return memoryview(mmap.mmap(-1, size_bytes))


def aligned_pages(count: int) -> list[memoryview]:
    """So many zeroed pages that lie one behind the other."""
    memory = aligned_buffer(count * PAGE_BYTES)
    return [memory[at : at + PAGE_BYTES] for at in range(0, count * PAGE_BYTES, PAGE_BYTES)]


def check_aligned(view: memoryview, payload_rounded_bytes: int) -> None:
    """Raises ValueError unless `view` is page-aligned memory of exactly that many bytes."""
    if view.nbytes != payload_rounded_bytes:
        raise ValueError(f"a view of {payload_rounded_bytes} bytes is needed, got {view.nbytes}")
    if _address(view) % PAGE_BYTES:
        raise ValueError("the memory must be page-aligned for direct I/O")


def _address(view: memoryview) -> int:
    if view.readonly:
        return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
    # Asked for every block, several times: a fifth of what NumPy takes.
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def write_all(env: Env, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Writes all buffers one after the other from `offset`. Raises OSError."""
    for start in range(0, len(buffers), _BUFFERS_PER_CALL_MAX):
        rest = list(buffers[start : start + _BUFFERS_PER_CALL_MAX])
        while rest:
            count = env.pwritev(fd, rest, offset)
            if count <= 0:
                raise OSError("the file system took no bytes")
            offset += count
            _advance(rest, count)


def read_all(env: Env, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Fills all buffers from `offset`. Raises OSError, TruncatedFileError."""
    rest = list(buffers)
    while rest:
        count = env.preadv(fd, rest, offset)
        if count <= 0:
            raise TruncatedFileError(f"the file ends at {offset}")
        offset += count
        _advance(rest, count)


def _advance(rest: list[Buffer], count: int) -> None:
    """Takes the first `count` bytes out of the buffers that are left to move."""
    whole = 0
    for buffer in rest:
        if count < buffer.nbytes:
            rest[whole] = buffer[count:]
            break
        count -= buffer.nbytes
        whole += 1
    del rest[:whole]
