"""Where the audit log ends: read from its last file when it is opened, torn lines cut off first.

What a file follows is `walk`'s to prove. What this process itself wrote and was answered for must
be there, and lines that it has read or written once it does not read again. REQUIRES: the
directory's lock. Blocks.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cache_service.audit.line import Head
from cache_service.audit.walk import (
    LINE_BYTES_MAX,
    AuditBrokenError,
    audit_files,
    in_order,
    walk_file,
)

__all__ = ["NOTHING_LEFT", "End", "find_end"]


NO_LINE = Head()


@dataclass(frozen=True, slots=True)
class End:
    """Where this process left the log, when it closed it."""

    head: Head = NO_LINE
    file: tuple[int, int] = (-1, -1)
    """Device and inode of the last file."""
    size: int = 0
    """Its length, up to the last line that was answered for."""
    refused_hash: str = ""
    """Of a line that was written but refused, and may not have been taken back."""


NOTHING_LEFT = End()


def find_end(directory: Path, left: End) -> tuple[int, Head]:
    """The last file's number and the chain's head, which has number 0 when there is no line.

    Raises OSError, AuditBrokenError.
    """
    files = list(in_order(audit_files(directory)))
    if not files:
        return 1, NO_LINE
    _cut_torn_line(files[-1])
    for path in reversed(files[-2:]):
        head = _head_of(path, NO_LINE if path == files[0] else None, left)
        if head is not None:
            break
    else:
        raise AuditBrokenError(f"{files[-2].name} has no line")
    if left.refused_hash and head.hash == left.refused_hash:
        _cut_last_line(path)
        return find_end(directory, left)
    if 0 < head.number < left.head.number:
        raise AuditBrokenError(
            f"{path.name} ends with line {head.number} of the chain; this service wrote"
            f" {left.head.number}"
        )
    return len(files), head


def _head_of(path: Path, head: Head | None, left: End) -> Head | None:
    """The head after the file's last line; `head`, which its first follows, when it has none."""
    status, offset = path.stat(), 0
    if (status.st_dev, status.st_ino) == left.file and status.st_size >= left.size > 0:
        head, offset = left.head, left.size
    for after in walk_file(path, head, offset):
        head = after
        if head.number == left.head.number and head.hash != left.head.hash:
            raise AuditBrokenError(
                f"{path.name}, line {head.number} is not the one that this service wrote"
            )
    return head


def _cut_torn_line(path: Path) -> None:
    tail, start = _tail(path)
    whole = tail.rfind(b"\n") + 1
    if whole < len(tail) and (whole or not start):  # else it is no line of this log
        _cut(path, start + whole)


def _cut_last_line(path: Path) -> None:
    tail, start = _tail(path)
    _cut(path, start + tail.rfind(b"\n", 0, -1) + 1)


def _tail(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - LINE_BYTES_MAX)
        file.seek(start)
        return file.read(), start


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
