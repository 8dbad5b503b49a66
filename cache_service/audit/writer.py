"""AuditWriter: the log's files, opened with the first line, and again after whatever went wrong.

A chain that does not hold is read once: until its files change, its fault is remembered. The audit
log's own thread; blocks.
"""

import os
from pathlib import Path

from cache_service.audit.files import AuditFiles
from cache_service.audit.line import AuditEntry, Head
from cache_service.audit.walk import AuditBrokenError, audit_files
from cache_service.errors import AuditUnavailableError

__all__ = ["AuditWriter"]

Marks = tuple[tuple[int, ...], ...]
"""What a directory and its files look like from outside; another one means that they changed."""


class AuditWriter:
    """Appends lines to the log in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: AuditFiles | None = None
        self._fault = ""
        self._fault_marks: Marks = ()

    def append(self, entry: AuditEntry) -> None:
        """Returns when the line is on the disk. Raises AuditUnavailableError, AuditLockedError."""
        try:
            if self._files is None:
                self._files = self._open()
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
        if files is not None:
            files.close()

    def _open(self) -> AuditFiles:
        before = _marks(self._directory)
        if self._fault and before == self._fault_marks:
            raise AuditBrokenError(self._fault)
        self._fault = ""
        try:
            return AuditFiles(self._directory)
        except AuditBrokenError as error:
            if before == _marks(self._directory):
                self._fault, self._fault_marks = str(error), before
            raise


def _marks(directory: Path) -> Marks:
    try:
        found = [os.stat(path) for path in (directory, *audit_files(directory))]
    except FileNotFoundError:
        return ()
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)
