"""The journal directory's lock, and the one segment that is open for appending.

Invariant: a segment holds whole batches only; after a failure its bytes end where the last good
batch ended (when the disk lets us cut), and it is never written again. Blocking code; owned by the
journal's writer thread, made on the main thread before that starts.
"""

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from journal.dialect import Dialect, EndedT, SubjectT
from journal.errors import JournalDirectoryError, JournalLockedError
from journal.format import JournalFormat, Record, lock_path

__all__ = ["JournalFile", "SegmentWriter", "lock_directory", "sync_directory"]


@dataclass(frozen=True, slots=True)
class JournalFile:
    """The calls that can fail, so that tests can make them."""

    write: Callable[[int, bytes], int] = os.write
    sync: Callable[[int], None] = os.fdatasync
    truncate: Callable[[int, int], None] = os.ftruncate


class SegmentWriter(Generic[SubjectT, EndedT]):
    """Appends batches of records under rising sequence numbers."""

    def __init__(
        self,
        directory: Path,
        last_sequence: int,
        form: JournalFormat[SubjectT, EndedT],
        file: JournalFile,
    ) -> None:
        self.directory = directory
        self._form = form
        self.sequence = last_sequence
        """Of the last record that was handed to `append`; never reused, even if that failed."""
        self.durable_sequence = last_sequence
        self.length = 0
        """Bytes of the open segment; 0 when none is."""
        self.used_bytes = self.measure()
        self._file = file
        self._descriptor: int | None = None

    @property
    def opened(self) -> bool:
        return self._descriptor is not None

    def open_next(self) -> None:
        """Makes the segment that the next record begins. Raises OSError."""
        assert self._descriptor is None
        self._path = self._form.segment_path(self.directory, self.sequence + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(self._path, flags, 0o600)
        self.length = 0

    def append(self, records: Sequence[Record[SubjectT, EndedT]], *, synced: bool) -> None:
        """Writes the batch in one piece; with `synced` all records so far are on the disk then.

        Raises OSError; then call `abandon`.
        """
        assert self._descriptor is not None
        first = self.sequence + 1
        self.sequence += len(records)
        encode = self._form.encode
        raw = b"".join(encode(first + i, record) for i, record in enumerate(records))
        written = 0
        while written < len(raw):
            written += self._file.write(self._descriptor, raw[written:])
        if synced:
            self._file.sync(self._descriptor)
            self.durable_sequence = self.sequence
        self.length += len(raw)
        self.used_bytes += len(raw)

    def finish(self) -> None:
        """Syncs and closes the segment. Raises OSError; then call `abandon`."""
        if self._descriptor is not None:
            self._file.sync(self._descriptor)
            self.durable_sequence = self.sequence
            self._close()

    def abandon(self) -> None:
        """Cuts off what `append` did not complete and closes. Raises OSError if the cut fails.

        A segment without one good record goes, or a full disk would collect one for each batch
        that it fails. Its numbers are in no file then and may be given again after a restart.
        """
        if self._descriptor is None:
            return
        try:
            self._file.truncate(self._descriptor, self.length)
            if self.length == 0:
                self._path.unlink()
        finally:
            self._close()

    def measure(self) -> int:
        """Bytes of all segments, from the directory."""
        sizes = 0
        for path in self._form.segment_paths(self.directory):
            try:
                sizes += path.stat().st_size
            except FileNotFoundError:
                # The delivery thread removed it between the listing and here.
                continue
        return sizes

    def _close(self) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
        self.length = 0


def lock_directory(directory: Path, dialect: Dialect[SubjectT, EndedT]) -> int:
    """Makes the directory and takes its lock; returns the descriptor that holds it.

    Raises JournalDirectoryError, JournalLockedError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock_path(directory), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise JournalDirectoryError(
            f"the {dialect.noun} cannot be kept in {directory}: {error.strerror}; make that"
            " possible, or choose another data_directory"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise JournalLockedError(
            f"another {dialect.holder} has the {dialect.noun} in {directory} open; give each"
            f" {dialect.holder} its own data_directory"
        ) from None
    return descriptor


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
