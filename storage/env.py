"""The seam between storage and the machine: file system, randomness and clock.

Storage code never calls `os` for something that can fail; it calls an `Env`. `RealEnv` passes
straight on. Tests bring one that fails the Nth write, writes short, flips bits or forgets what was
not synced. RocksDB does its own I/O and is not behind this seam.

Invariant: no method retries, buffers or interprets; errors are the `OSError` of the system call.
Stateless, any thread.
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Buffer", "Env", "RealEnv"]

Buffer = memoryview
"""What is read into and written from; page-aligned where the file is opened for direct I/O."""


class Env(Protocol):
    """System calls that storage needs. All block; all raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """A new descriptor; files are created with mode 0o600."""
        ...

    def close(self, fd: int) -> None: ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Bytes written, possibly fewer than asked."""
        ...

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Bytes read, possibly fewer than asked; 0 at the end of the file."""
        ...

    def fdatasync(self, fd: int) -> None: ...

    def fallocate(self, fd: int, size_bytes: int) -> None:
        """Makes the file `size_bytes` long with all blocks reserved."""
        ...

    def lock(self, fd: int) -> bool:
        """Takes the exclusive lock without waiting; False when another process has it."""
        ...

    def rename(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def remove_tree(self, path: Path) -> None:
        """Removes a directory with all it holds; nothing happens when it is not there."""
        ...

    def mkdir(self, path: Path) -> None:
        """Makes the directory and its parents; nothing happens when it is there."""
        ...

    def listdir(self, path: Path) -> list[str]:
        """Sorted names."""
        ...

    def size_bytes(self, path: Path) -> int: ...

    def free_bytes(self, path: Path) -> int:
        """Room that this user may still take in the file system of `path`."""
        ...

    def fsync_directory(self, path: Path) -> None: ...

    def monotonic_seconds(self) -> float: ...

    def wall_seconds(self) -> float:
        """Unix time."""
        ...

    def random_seed(self) -> int:
        """Unpredictable, in [1, 2**64)."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable, fit for keys."""
        ...


class RealEnv:
    """This machine."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fallocate(self, fd: int, size_bytes: int) -> None:
        os.posix_fallocate(fd, 0, size_bytes)

    def lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False
            raise
        return True

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def remove_tree(self, path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def listdir(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def size_bytes(self, path: Path) -> int:
        return path.stat().st_size

    def free_bytes(self, path: Path) -> int:
        room = os.statvfs(path)
        return room.f_bavail * room.f_frsize

    def fsync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    def wall_seconds(self) -> float:
        return time.time()

    def random_seed(self) -> int:
        return secrets.randbelow(2**64 - 1) + 1

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)
