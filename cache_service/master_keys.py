"""Master keys for the SSD tier, from files that only this service's user can read.

Read once at start. Invariant: a key that others could have read is not used. Any thread.
"""

import os
import stat
from pathlib import Path

from cache_service.settings import SsdSettings
from kvtier.errors import KvtierError
from storage.ssd.encryption import KEY_BYTES
from storage.ssd.key_ring import Encryption

__all__ = ["MasterKeyFileError", "encryption_of", "read_master_key"]

_OTHERS = 0o077


class MasterKeyFileError(KvtierError):
    """A master key cannot be used; the message names the file."""

    reason = "MASTER_KEY_FILE"


def encryption_of(settings: SsdSettings) -> Encryption:
    """As the SSD tier takes it. Raises MasterKeyFileError."""
    files = [settings.master_key_file, *settings.old_master_key_files]
    keys = [read_master_key(path) for path in files if path is not None]
    return Encryption(tuple(dict.fromkeys(keys)), give_up=settings.give_up_encrypted)


def read_master_key(path: Path) -> bytes:
    """32 bytes. Raises MasterKeyFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            _check_owner(path, os.fstat(descriptor))
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise MasterKeyFileError(
            f"master key {path} cannot be read: {error.strerror or error}; make one with"
            f" (umask 077; head -c {KEY_BYTES} /dev/urandom > FILE)",
            file=path,
        ) from None
    if len(key) != KEY_BYTES:
        size = f"{len(key)} bytes" if len(key) < KEY_BYTES else "more"
        raise MasterKeyFileError(
            f"master key {path} has to have exactly {KEY_BYTES} bytes and has {size}; make one"
            f" with (umask 077; head -c {KEY_BYTES} /dev/urandom > FILE)",
            file=path,
        )
    return key


def _check_owner(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise MasterKeyFileError(f"master key {path} is not a file", file=path)
    if found.st_mode & _OTHERS:
        raise MasterKeyFileError(
            f"master key {path} can be read by others than its owner: chmod 600 {path}, and count"
            " it as known to them",
            file=path,
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise MasterKeyFileError(
            f"master key {path} belongs to another user: chown it to the service's", file=path
        )
