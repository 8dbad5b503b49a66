"""The data directory: ours, locked, writable, and holding exactly the right segment files.

Invariant: segment files are `segment_bytes` each and at most `capacity_bytes // segment_bytes` of
them exist at any instant: what is too much is removed before anything is created. Used at open,
by the opening thread; the lock is held until `unlock`.
"""

import contextlib
import errno
import os
from pathlib import Path

from storage.env import Env
from storage.errors import (
    CapacityError,
    DataDirectoryError,
    DirectoryFullError,
    DirectoryLockedError,
    DirectoryReadOnlyError,
    ForeignDirectoryError,
    FormatTooNewError,
)
from storage.ssd.direct_io import segment_open_flags
from storage.ssd.files import write_all
from storage.ssd.format import (
    ENCRYPTED_FORMAT_VERSION,
    FORMAT_VERSION,
    INDEX_DIRECTORY,
    KEY_FILE,
    LOCK_FILE,
    MARKER_FILE,
    SEGMENT_DIRECTORY,
    TEMPORARY_SUFFIX,
    BadPageError,
    Marker,
    pack_marker,
    parse_marker,
    parse_segment_header,
    parse_segment_name,
    segment_path,
)
from storage.ssd.older_format import empty_older
from storage.tier import PAGE_BYTES, SegmentId

__all__ = ["DataDirectory", "explained"]

_KNOWN = frozenset({MARKER_FILE, LOCK_FILE, INDEX_DIRECTORY, SEGMENT_DIRECTORY, KEY_FILE})
_NEVER_MINE = "lost+found"
"""In every fresh ext4 file system; an otherwise empty directory with it counts as empty."""
_MARKER_BYTES_MAX = 4096


class DataDirectory:
    """A locked data directory."""

    def __init__(self, env: Env, path: Path, segment_bytes: int) -> None:
        """Locks; creates what is missing. Raises DataDirectoryError subclasses, CapacityError."""
        self._env = env
        self.path = path
        self.segment_bytes = segment_bytes
        self.problems: list[str] = []
        """One line for each foreign file and for an older format, for the report."""
        self.dropped_count = 0
        """Blocks of an older format."""
        self.expiries = False
        """Some of the blocks have, or had, an end."""
        self.encrypted = False
        """The marker says that some of the blocks are, or were, encrypted."""
        self._lock_fd = -1
        try:
            env.mkdir(path)
            self._check_marker()  # before the lock: a foreign directory stays untouched
            self._lock()
            marker = self._check_marker()  # again: another process may have made it in between
            if marker is not None and marker.format_version < FORMAT_VERSION:
                self._empty_older(marker)
            elif marker is not None:
                self.expiries, self.encrypted = marker.expiries, marker.encrypted
            elif MARKER_FILE in env.listdir(path):
                self._write_marker_again()
            self._create_missing()
            self._tidy()
            self.open_flags, self.io_problem = segment_open_flags(env, path)
        except OSError as error:
            self.unlock()
            raise explained(error, path) from error
        except Exception:
            self.unlock()
            raise

    @property
    def index_path(self) -> Path:
        return self.path / INDEX_DIRECTORY

    def index_file_bytes(self) -> int:
        """What the files of the index take now."""
        size = 0
        for name in self._env.listdir(self.index_path):
            with contextlib.suppress(OSError):  # RocksDB may have removed it meanwhile
                size += self._env.size_bytes(self.index_path / name)
        return size

    @property
    def has_index(self) -> bool:
        return INDEX_DIRECTORY in self._env.listdir(self.path)

    @property
    def direct(self) -> bool:
        return bool(self.open_flags & os.O_DIRECT)

    def unlock(self) -> None:
        """Idempotent."""
        if self._lock_fd >= 0:
            self._env.close(self._lock_fd)
            self._lock_fd = -1

    def segment_ids(self) -> set[SegmentId]:
        """Segments that have a file, whatever its size."""
        names = self._env.listdir(self.path / SEGMENT_DIRECTORY)
        found = (parse_segment_name(name) for name in names)
        return {segment_id for segment_id in found if segment_id is not None}

    def segment_file_bytes(self, segment_id: SegmentId) -> int:
        return self._env.size_bytes(segment_path(self.path, segment_id))

    def open_segment(self, segment_id: SegmentId) -> int:
        """A descriptor for page-aligned I/O."""
        return self._env.open(segment_path(self.path, segment_id), self.open_flags)

    def check_room(self, segment_count: int) -> None:
        """Raises DirectoryFullError when so many more segments cannot fit: filling the disk to the
        brim just to find that out would break whoever else lives on it."""
        needed, free = segment_count * self.segment_bytes, self._env.free_bytes(self.path)
        if needed > free:
            raise DirectoryFullError(
                f"the file system of {self.path} has {free} bytes free and the configured capacity"
                f" needs {needed} more: lower ssd capacity_bytes or free some space",
                free_bytes=free,
                needed_bytes=needed,
            )

    def create_segment(self, segment_id: SegmentId) -> None:
        """A preallocated file that was never opened. It appears under its name only when whole."""
        target = segment_path(self.path, segment_id)
        temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
        try:
            fd = self._env.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                self._env.fallocate(fd, self.segment_bytes)
                self._env.fdatasync(fd)
            finally:
                self._env.close(fd)
        except OSError:
            if temporary.exists():
                self._env.unlink(temporary)
            raise
        self._env.rename(temporary, target)

    def remove_segment(self, segment_id: SegmentId) -> None:
        self._env.unlink(segment_path(self.path, segment_id))

    def sync_segments(self) -> None:
        """Makes creations and removals durable."""
        self._env.fsync_directory(self.path / SEGMENT_DIRECTORY)

    def remove_index(self) -> None:
        self._env.remove_tree(self.index_path)
        self._env.fsync_directory(self.path)

    def mark_expiries(self) -> None:
        """Some block is about to have an end; durable on return. Raises OSError."""
        if not self.expiries:
            self._create_marker(expiries=True, encrypted=self.encrypted)
            self.expiries = True

    def mark_encrypted(self) -> None:
        """Some block is about to be encrypted; durable on return. Raises OSError."""
        if not self.encrypted:
            self._create_marker(expiries=self.expiries, encrypted=True)
            self.encrypted = True

    def unmark_encrypted(self) -> None:
        """Nobody has a key to any block any more; durable on return. Raises OSError."""
        if self.encrypted:
            self._create_marker(expiries=self.expiries)
            self.encrypted = False

    # --- small files --------------------------------------------------------------------------

    @property
    def has_key_file(self) -> bool:
        return KEY_FILE in self._env.listdir(self.path)

    def read_file(self, name: str) -> bytes:
        """All of it. Raises OSError."""
        raw = bytearray(self._env.size_bytes(self.path / name))
        fd = self._env.open(self.path / name, os.O_RDONLY)
        try:
            count = 0
            while rest := memoryview(raw)[count:]:
                done = self._env.preadv(fd, [rest], count)
                if not done:
                    break
                count += done
        finally:
            self._env.close(fd)
        return bytes(raw[:count])

    def replace_file(self, name: str, raw: bytes) -> None:
        """The old one or the new one, whole, after any crash; the new one on return. Raises
        OSError."""
        temporary = self.path / (name + TEMPORARY_SUFFIX)
        fd = self._env.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self._env, fd, [memoryview(raw)], 0)
            self._env.fdatasync(fd)
        finally:
            self._env.close(fd)
        self._env.rename(temporary, self.path / name)
        self._env.fsync_directory(self.path)

    def remove_file(self, name: str) -> None:
        """Durable on return. Raises OSError."""
        self._env.unlink(self.path / name)
        self._env.fsync_directory(self.path)

    # --- opening ------------------------------------------------------------------------------

    def _check_marker(self) -> Marker | None:
        """None in an empty directory, and in one of ours whose marker is damaged."""
        names = self._env.listdir(self.path)
        if MARKER_FILE not in names:
            own = {LOCK_FILE, MARKER_FILE + TEMPORARY_SUFFIX, _NEVER_MINE}
            strangers = [name for name in names if name not in own]
            if strangers:
                raise ForeignDirectoryError(
                    f"{self.path} holds files that are not kvtier's ({', '.join(strangers[:3])});"
                    " give the SSD tier an empty directory of its own"
                )
            return None
        try:
            marker = self._parsed_marker()
        except (ForeignDirectoryError, CapacityError, FormatTooNewError):
            if not self._segments_are_ours(names):
                raise
            # Nobody else's files have such headers: it is the marker that is wrong.
            return None
        return marker

    def _parsed_marker(self) -> Marker:
        try:
            marker = parse_marker(self._read_marker())
        except BadPageError as error:
            raise ForeignDirectoryError(
                f"{self.path}/{MARKER_FILE} is not kvtier's: {error};"
                " give the SSD tier an empty directory, or empty this one to lose its blocks"
            ) from None
        if marker.segment_bytes != self.segment_bytes:
            raise CapacityError(
                f"{self.path} was made with segments of {marker.segment_bytes} bytes and the"
                f" settings say {self.segment_bytes}: set segment_bytes back, or empty the"
                " directory to lose its blocks",
                segment_bytes=marker.segment_bytes,
            )
        return marker

    def _segments_are_ours(self, names: list[str]) -> bool:
        """Whether a segment says, under its checksum, that it is of this version, of the size that
        is set and of that number; and nothing but what is ours lies beside them."""
        own = {*_KNOWN, MARKER_FILE + TEMPORARY_SUFFIX, _NEVER_MINE}
        if SEGMENT_DIRECTORY not in names or not own.issuperset(names):
            return False
        page = memoryview(bytearray(PAGE_BYTES))
        for segment_id in sorted(self.segment_ids()):
            if self.segment_file_bytes(segment_id) != self.segment_bytes:
                continue
            fd = self._env.open(segment_path(self.path, segment_id), os.O_RDONLY)
            try:
                count = self._env.preadv(fd, [page], 0)
            finally:
                self._env.close(fd)
            with contextlib.suppress(BadPageError, FormatTooNewError):
                header = parse_segment_header(page, segment_id) if count == PAGE_BYTES else None
                if header is not None and header.segment_bytes == self.segment_bytes:
                    return True
        return False

    def _empty_older(self, marker: Marker) -> None:
        lost = empty_older(self._env, self.path)
        self._create_marker()
        self.dropped_count = lost or 0
        count = "an unknown number of" if lost is None else str(lost)
        self.problems.append(
            f"the directory was of format {marker.format_version}, which is not read any more:"
            f" {count} blocks are dropped"
        )

    def _write_marker_again(self) -> None:
        # Whether blocks have an end, the marker alone said: that some may have is right for both.
        self.expiries, self.encrypted = True, self.has_key_file
        self._create_marker(expiries=True, encrypted=self.encrypted)
        self.problems.append(
            f"{MARKER_FILE} was damaged and is written again as the segments' headers say"
        )

    def _read_marker(self) -> bytes:
        buffer = memoryview(bytearray(_MARKER_BYTES_MAX))
        fd = self._env.open(self.path / MARKER_FILE, os.O_RDONLY)
        try:
            count = self._env.preadv(fd, [buffer], 0)
        finally:
            self._env.close(fd)
        return bytes(buffer[:count])

    def _lock(self) -> None:
        self._lock_fd = self._env.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        if not self._env.lock(self._lock_fd):
            holder = memoryview(bytearray(32))
            count = self._env.preadv(self._lock_fd, [holder], 0)
            other = bytes(holder[:count]).decode(errors="replace").strip() or "unknown"
            raise DirectoryLockedError(
                f"{self.path} is in use by process {other}: stop it, or choose another directory",
                pid=other,
            )
        own = memoryview(f"{os.getpid()}\n".ljust(32).encode())
        write_all(self._env, self._lock_fd, [own], 0)

    def _create_missing(self) -> None:
        # Marker first: a crash must not leave our files in a directory that is not marked ours.
        if MARKER_FILE not in self._env.listdir(self.path):
            self._create_marker()
        self._env.mkdir(self.path / SEGMENT_DIRECTORY)

    def _create_marker(self, *, expiries: bool = False, encrypted: bool = False) -> None:
        version = ENCRYPTED_FORMAT_VERSION if encrypted else FORMAT_VERSION
        self.replace_file(MARKER_FILE, pack_marker(Marker(version, self.segment_bytes, expiries)))

    def _tidy(self) -> None:
        segments = self.path / SEGMENT_DIRECTORY
        for folder, known in ((self.path, _KNOWN | {_NEVER_MINE}), (segments, frozenset())):
            for name in self._env.listdir(folder):
                if name.endswith(TEMPORARY_SUFFIX):
                    self._env.unlink(folder / name)
                elif name not in known and parse_segment_name(name) is None:
                    self.problems.append(f"{folder / name} is not kvtier's and was left alone")


def explained(error: OSError, path: Path) -> DataDirectoryError:
    """The typed form of a failed system call while opening `path`."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DirectoryReadOnlyError(
            f"{path} cannot be written ({error.strerror}): give kvtier's user write access to it,"
            " or choose another directory"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DirectoryFullError(
            f"the file system of {path} has no room for the configured capacity"
            f" ({error.strerror}): lower ssd capacity_bytes or free some space"
        )
    return DataDirectoryError(f"{path} cannot be used: {error.strerror or error}")
