"""The file of API keys: who writes it, and how it is read.

    {"format": 1, "keys": [{"key_id": ..., "path": "acme/search", "secrets": [...]}]}

One writer at a time (`flock` on the file's neighbour `.lock`), who replaces the file as a whole:
write, sync, rename, sync of the directory. So a reader sees the file before a change or after it.
Invariant: it holds digests and never a secret; nobody but its owner may read or write it, and a
change by root leaves it its owner's. A gateway asks the file's stamp with each request, so that a
change holds from the next one on.
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import KeyChangeError, KeysUnavailableError
from gateway.keys import ApiKey, KeyRing, KeySecret
from kvtier.scopes import ScopePath

__all__ = ["KeyFile", "KeyReader"]

FORMAT = 1
"""Frozen: stored in the file."""
FILE_BYTES_MAX = 64 << 20
KEYS_MAX = 100_000

Result = TypeVar("Result")


class KeyFile:
    """Reads and changes the file at `path`. Any thread; blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, own: bool = False) -> KeyRing:
        """Empty where there is no file. `own`: root, too, takes no keys of another user's file.

        Raises KeysUnavailableError.
        """
        try:
            # Whoever put a pipe there is not waited for.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                _check(self.path, os.fstat(descriptor), own)
                raw = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return KeyRing()
        except OSError as error:
            raise KeysUnavailableError(f"cannot read {self.path}: {error.strerror}") from None
        return _decoded(self.path, raw)

    def change(self, make: Callable[[KeyRing], tuple[ApiKey, Result]]) -> Result:
        """Puts in the key that `make` gives. Raises KeysUnavailableError and what `make` raises."""
        with self._locked():
            ring = self.read()
            key, result = make(ring)
            ring = ring.with_key(key)
            if len(ring.keys) > KEYS_MAX:
                raise KeyChangeError(f"{self.path} has {KEYS_MAX} keys; more do not fit")
            self._write(_encoded(ring))
        return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(lock, flags, 0o600)
        except OSError as error:
            raise KeysUnavailableError(f"cannot write {lock}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._hand_over(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _write(self, raw: bytes) -> None:
        temporary = self.path.with_name(f"{self.path.name}.new")
        try:
            temporary.unlink(missing_ok=True)  # of a writer that crashed
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                self._hand_over(file.fileno())
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise KeysUnavailableError(f"cannot write {self.path}: {error.strerror}") from None

    def _hand_over(self, descriptor: int) -> None:
        """To whom the file of keys belongs, where this process may."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            there, here = self.path.stat(), os.fstat(descriptor)
            if (there.st_uid, there.st_gid) != (here.st_uid, here.st_gid):
                os.fchown(descriptor, there.st_uid, there.st_gid)


class KeyReader:
    """The ring as the file has it now. Event loop: a look is a `stat`, and rarely a read."""

    def __init__(self, file: KeyFile) -> None:
        """Raises KeysUnavailableError."""
        self._file = file
        self._stamp = self._look()
        self._ring = file.read(own=True)

    def ring(self) -> KeyRing:
        """Raises KeysUnavailableError: nobody is let in by keys that may be revoked."""
        stamp = self._look()
        if stamp != self._stamp:
            # The stamp is older than what is read: a change between them is seen next time.
            self._ring = self._file.read(own=True)
            self._stamp = stamp
        return self._ring

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._file.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeysUnavailableError(f"cannot read the keys: {error.strerror}") from None
        # Of these the last changes with every change of the file, rights and owner too.
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check(path: Path, found: os.stat_result, own: bool) -> None:
    """Before a byte is read."""
    if not stat.S_ISREG(found.st_mode):
        raise KeysUnavailableError(f"{path} is no file; put it back from a copy")
    if found.st_size > FILE_BYTES_MAX:
        raise KeysUnavailableError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise KeysUnavailableError(f"{path} can be read or written by others; chmod 600 {path}")
    stranger = found.st_uid not in (os.geteuid(), 0)
    if stranger and (own or os.geteuid() != 0):
        raise KeysUnavailableError(f"{path} is another user's; chown it to the gateway's user")


def _encoded(ring: KeyRing) -> bytes:
    fields = {"format": FORMAT, "keys": [_key_fields(key) for key in ring.keys.values()]}
    return (json.dumps(fields, ensure_ascii=False, indent=1) + "\n").encode()


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "path": str(key.path),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "service_classes": list(key.service_classes),
        "secrets": [
            {
                "sha256": each.digest.hex(),
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in key.secrets
        ],
    }


def _decoded(path: Path, raw: bytes) -> KeyRing:
    if len(raw) > FILE_BYTES_MAX:  # it grew meanwhile
        raise KeysUnavailableError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    try:
        fields = json.loads(raw)
        version = fields["format"]
        if version != FORMAT:
            raise KeysUnavailableError(
                f"{path} has format {version}, this gateway reads {FORMAT}; use the newer kvtier"
            )
        keys = [_key(each) for each in fields["keys"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KeysUnavailableError(
            f"{path} is no file of keys ({type(error).__name__}); put it back from a copy"
        ) from None
    return KeyRing({key.key_id: key for key in keys})


def _key(fields: dict[str, Any]) -> ApiKey:
    return ApiKey(
        key_id=str(fields["key_id"]),
        name=str(fields["name"]),
        path=ScopePath.parse(fields["path"]),
        created_at=int(fields["created_at"]),
        revoked_at=_time(fields["revoked_at"]),
        service_classes=tuple(map(str, fields["service_classes"])),
        secrets=tuple(
            KeySecret(
                bytes.fromhex(each["sha256"]), int(each["created_at"]), _time(each["expires_at"])
            )
            for each in fields["secrets"]
        ),
    )


def _time(value: Any) -> int | None:
    return None if value is None else int(value)
