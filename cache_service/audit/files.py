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

from cache_service.audit.line import AuditEntry, Head, line_of
from cache_service.audit.walk import (
    LINE_BYTES_MAX,
    AuditBrokenError,
    audit_files,
    in_order,
    walk_file,
)
from cache_service.errors import AuditLockedError

__all__ = ["AuditFiles"]

FILE_BYTES_MAX = 64 * 1024 * 1024


class AuditFiles:
    """The chain's end, opened. Raises OSError, AuditBrokenError, AuditLockedError."""

    def __init__(self, directory: Path, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self._directory = directory
        self._file_bytes_max = file_bytes_max
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory_fd = _locked(directory)
        try:
            self._number, self.head = _end(directory)
            self._fd = self._open(self._number)
        except BaseException:
            os.close(self._directory_fd)
            raise
        self._size = os.fstat(self._fd).st_size
        self.usable = True

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
            self._take_back()
            raise
        self._size += len(line)
        self.head = head
        return head

    def close(self) -> None:
        """Gives the directory to whoever opens it next."""
        os.close(self._fd)
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
        path = self._directory / f"{number:06d}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fsync(self._directory_fd)
        except OSError:
            os.close(fd)
            raise
        return fd


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


def _end(directory: Path) -> tuple[int, Head]:
    """The last file's number and the chain's head, by that file's own lines: what it follows is
    `walk`'s to prove."""
    files = list(in_order(audit_files(directory)))
    if not files:
        return 1, Head()
    _cut_torn_line(files[-1])
    for path in reversed(files[-2:]):
        head = Head() if path == files[0] else None
        for after in walk_file(path, head):
            head = after
        if head is not None:
            return len(files), head
    raise AuditBrokenError(f"{files[-2].name} has no line")


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - LINE_BYTES_MAX))
        whole = start + file.read().rfind(b"\n") + 1
        if whole < size and (whole > start or not start):  # else it is no line of ours
            file.truncate(whole)
            os.fsync(file.fileno())
