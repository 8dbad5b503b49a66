"""AuditWriter: the log's files, opened with the first line, and again after whatever went wrong.

Invariant: a line goes to where the log's path leads, after the last one that was answered for, or
it is refused. A log that was moved away is begun anew, with a line that says where it ended:

    {"outcome": "moved", "reason": "LOG_MOVED_AWAY", "target": "number=N hash=H", "number": 1, ...}

A chain that does not hold is read once: until its files change, its fault is remembered. The audit
log's own thread; blocks.
"""

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from cache_service.audit.end import NOTHING_LEFT
from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry, Head
from cache_service.audit.walk import AuditBrokenError, audit_files
from cache_service.errors import AuditUnavailableError

__all__ = ["AuditWriter"]

log = logging.getLogger(__name__)

Marks = tuple[tuple[int, ...], ...]
"""What a directory and its files look like from outside; another one means that they changed."""


class AuditWriter:
    """Appends lines to the log in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: AuditFiles | None = None
        self._left = NOTHING_LEFT
        self._fault = ""
        self._fault_marks: Marks = ()

    def append(self, entry: AuditEntry) -> None:
        """Returns when the line is on the disk. Raises AuditUnavailableError, AuditLockedError."""
        try:
            if self._files is not None and not self._files.in_place():
                log.warning("the audit log is not as it was left; it is opened again")
                self._drop()
            if self._files is None:
                self._files = self._open()
            if not self._files.head.number and self._left.head.number:
                self._files.append(_moved(self._left.head, entry.time))
            self._files.append(entry)
        except OSError as error:
            self._drop()
            raise AuditUnavailableError(
                f"the audit log cannot be written ({error.strerror}), so this call is refused;"
                f" make that possible for {self._directory.name}/ in the data directory"
            ) from error
        except AuditBrokenError as error:
            raise AuditUnavailableError(
                f"the audit log does not hold ({error}), so this call is refused; move"
                f" {self._directory.name}/ out of the data directory whole, and keep it"
            ) from error

    def close(self) -> Head | None:
        """Where the chain ends; None when it was not open."""
        head = self._files.head if self._files is not None else None
        self._drop()
        return head

    def _drop(self) -> None:
        files, self._files = self._files, None
        if files is None:
            return
        end = files.end
        # Without a line there it is the log before that was written last.
        self._left = end if end.head.number else replace(self._left, refused_hash=end.refused_hash)
        with contextlib.suppress(OSError):  # every line that was answered for is on the disk
            files.close()

    def _open(self) -> AuditFiles:
        before = _marks(self._directory)
        if self._fault and before == self._fault_marks:
            raise AuditBrokenError(self._fault)
        self._fault = ""
        try:
            return AuditFiles(self._directory, left=self._left)
        except AuditBrokenError as error:
            if before == _marks(self._directory):
                self._fault, self._fault_marks = str(error), before
            raise


def _moved(last: Head, time: str) -> AuditEntry:
    target = f"number={last.number} hash={last.hash}"
    return AuditEntry(time, "", (), "", target, "moved", "LOG_MOVED_AWAY")


def _marks(directory: Path) -> Marks:
    try:
        found = [os.stat(path) for path in (directory, *audit_files(directory))]
    except FileNotFoundError:
        return ()
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)
