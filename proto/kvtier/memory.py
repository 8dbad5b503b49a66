"""A shared file mapped where huge pages can lie, on both sides of the arena.

A page of 2 MiB costs the processor one entry where 4 KiB pages cost 512, and the kernel one step
for each direct read or write: moving blocks takes a third less of its time. The kernel gives such
pages for a memory file only when its addresses and offsets agree modulo 2 MiB, which `mmap` alone
does not see to, and, unless the administrator chose otherwise, only when it is asked for a range
that has pages already (MADV_COLLAPSE, since Linux 6.1). Where it does not, nothing is lost.

Invariant: a mapping lives until the last view of it is gone, and no longer. Any thread.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

__all__ = ["HUGE_PAGE_BYTES", "collapse", "huge_bytes", "mapped", "populate"]

HUGE_PAGE_BYTES = 2 << 20

_MADV_COLLAPSE = 25
_MADV_POPULATE_WRITE = 23

_NO_ACCESS = 0
_FIXED = 0x10
"""PROT_NONE and MAP_FIXED, which the mmap module does not name."""
_NOT_MAPPED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def mapped(fd: int, size_bytes: int) -> memoryview:
    """All of a file's first bytes, shared and writable. Nothing is touched. Raises OSError.

    REQUIRES: the file is at least as long, and stays so.
    """
    # Address space for one huge page more, then the file inside it where it begins at one.
    room = size_bytes + HUGE_PAGE_BYTES
    base = _map(0, room, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    start = -(-base // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    try:
        _map(start, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, fd)
    except OSError:
        _libc.munmap(base, room)
        raise
    memory = (ctypes.c_char * size_bytes).from_address(start)
    # Views hold the array. At the interpreter's end other threads may still be in it.
    weakref.finalize(memory, _libc.munmap, base, room).atexit = False
    return memoryview(memory).cast("B")


def populate(view: memoryview) -> None:
    """Gives every byte its page, so that nobody pays for a first touch later. Raises OSError."""
    try:
        _advise(view, _MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        bytes(view[:: mmap.PAGESIZE])  # Linux before 5.14: one look at each page


def collapse(view: memoryview) -> None:
    """Puts what has at least one page into huge pages. Keeps what is in it; others may read and
    write it meanwhile. Raises OSError: EINVAL where the kernel does not know how, others where it
    found no huge page for some of it.

    REQUIRES: begins and ends at a multiple of `HUGE_PAGE_BYTES` of a `mapped` view.
    """
    _advise(view, _MADV_COLLAPSE)


def huge_bytes(view: memoryview) -> int:
    """How much of a `mapped` view lies in huge pages now; 0 where the kernel does not say."""
    start, found = f"{_address(view):x}-", False
    with contextlib.suppress(OSError), Path("/proc/self/smaps").open() as lines:
        for line in lines:
            if line.startswith(start):
                found = True
            elif found and line.startswith("ShmemPmdMapped:"):
                return int(line.split()[1]) * 1024
    return 0


def _advise(view: memoryview, advice: int) -> None:
    if _libc.madvise(_address(view), view.nbytes, advice):
        raise _error()


def _map(address: int, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if found == _NOT_MAPPED:
        raise _error()
    assert isinstance(found, int)
    return found


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
