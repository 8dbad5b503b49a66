"""The audit log's files: numbered, appended, each line durable before `append` returns.

    audit/000001.jsonl, 000002.jsonl, ...      the chain goes on from file to file

Invariant: what `append` returned for is on the disk, whole; a line that failed is taken back, and
one that a crash or the disk left torn is cut off at the next opening (nobody was answered for it).
One process at a time, held by a lock on the directory itself: it goes where the directory goes.
One thread at a time; blocks.
"""

import errno
import fcntl
import os
from pathlib import Path

from cache_service.audit.end import NOTHING_LEFT, End, find_end
from cache_service.audit.line import AuditEntry, Head, line_of
from cache_service.errors import AuditLockedError

__all__ = ["AuditFiles"]

FILE_BYTES_MAX = 64 * 1024 * 1024


class AuditFiles:
    """The chain's end, opened. Raises OSError, AuditBrokenError, AuditLockedError."""

    def __init__(
        self, directory: Path, file_bytes_max: int = FILE_BYTES_MAX, left: End = NOTHING_LEFT
    ) -> None:
        """`left`: where this process left the log before, which must be there still, or no log."""
        self._directory = directory
        self._file_bytes_max = file_bytes_max
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory_fd = _locked(directory)
        try:
            _sync(directory.parent)
            self._number, self.head = find_end(directory, left)
            self._fd = self._open(self._number)
        except BaseException:
            os.close(self._directory_fd)
            raise
        self._size = os.fstat(self._fd).st_size
        self._refused_hash = ""
        self.usable = True

    @property
    def end(self) -> End:
        """Where the log is left; `left` of the next opening."""
        opened = os.fstat(self._fd)
        return End(self.head, (opened.st_dev, opened.st_ino), self._size, self._refused_hash)

    def in_place(self) -> bool:
        """Whether the log's path names what is open here, as it was left."""
        path = self._path(self._number)
        pairs = ((self._directory_fd, self._directory), (self._fd, path))
        try:
            same = all(os.path.samestat(os.fstat(fd), path.stat()) for fd, path in pairs)
        except OSError:
            return False  # opening again says what is wrong
        opened = os.fstat(self._fd)
        return same and opened.st_nlink > 0 and opened.st_size == self._size

    def append(self, entry: AuditEntry) -> Head:
        """Writes one line. Raises OSError; then nothing was added, or `usable` is false."""
        if not self.usable:
            raise OSError(errno.EIO, "the audit log's files must be opened again")
        if self._size >= self._file_bytes_max:
            self._rotate()
        line, head = line_of(entry, self.head)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "the disk took only part of a line")
            os.fsync(self._fd)
        except OSError:
            self._refused_hash = head.hash
            self._take_back()
            raise
        self._size += len(line)
        self.head, self._refused_hash = head, ""
        return head

    def close(self) -> None:
        """Gives the directory to whoever opens it next."""
        try:
            os.close(self._fd)
        finally:
            os.close(self._directory_fd)

    def _take_back(self) -> None:
        """What cannot be taken back must have no line after it: opening again cuts it off."""
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        except OSError:
            self.usable = False

    def _rotate(self) -> None:
        fd = self._open(self._number + 1)
        os.close(self._fd)
        self._fd, self._size = fd, os.fstat(fd).st_size
        self._number += 1

    def _open(self, number: int) -> int:
        fd = os.open(
            self._path(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            os.fsync(self._directory_fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.jsonl"


def _sync(directory: Path) -> None:
    """Makes the names in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise AuditLockedError(
            f"another cache service writes {directory.name}/ in this data directory; stop it, or"
            " give each service its own data_directory"
        ) from None
    return fd
