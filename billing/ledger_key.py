"""The ledger's private key, in a file of its own in the data directory.

    ledger_key.pem         signs checkpoints; PKCS#8, mode 0600
    ledger_key.next.pem    while it is being replaced

Invariant: a key that the ledger names is on the disk before it is named, and the one before is
there until its successor is committed: a crash at any step leaves a key that fits. Whoever reads
the file can sign for the ledger. Main thread at the start, the writer's afterwards.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from billing.errors import LedgerKeyError

__all__ = ["KEY_FILE", "KeyFile"]

KEY_FILE = "ledger_key.pem"
_NEXT_FILE = "ledger_key.next.pem"


class KeyFile:
    """The key in `directory`, made by whoever asks for it first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def path(self) -> Path:
        return self._directory / KEY_FILE

    def load(self) -> Ed25519PrivateKey | None:
        """None: there is none. Raises LedgerKeyError."""
        return self._read(self.path)

    def load_next(self) -> Ed25519PrivateKey | None:
        """One that was made to follow. Raises LedgerKeyError."""
        return self._read(self._directory / _NEXT_FILE)

    def make(self) -> Ed25519PrivateKey:
        """A new key, on the disk. Raises LedgerKeyError."""
        return self._write(self.path)

    def make_next(self) -> Ed25519PrivateKey:
        """A new key beside the present one; `adopt_next` puts it in its place."""
        return self._write(self._directory / _NEXT_FILE)

    def adopt_next(self) -> None:
        try:
            (self._directory / _NEXT_FILE).replace(self.path)
            self._sync_directory()
        except OSError as error:
            raise self._unusable(self.path, error) from None

    def _read(self, path: Path) -> Ed25519PrivateKey | None:
        try:
            if path.stat().st_mode & 0o077:
                raise LedgerKeyError(
                    f"others may read {path}, which signs for the ledger; chmod 600 {path}",
                    path=path,
                )
            key = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(path, error) from None
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise LedgerKeyError(f"{path} is not an Ed25519 key of kvtier", path=path)
        return key

    def _write(self, path: Path) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        temporary = path.with_suffix(".new")
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._sync_directory()
        except OSError as error:
            raise self._unusable(path, error) from None
        return key

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _unusable(self, path: Path, error: OSError) -> LedgerKeyError:
        return LedgerKeyError(
            f"the ledger's key {path} cannot be used: {error.strerror}; make that possible, or"
            " choose another data_directory",
            path=path,
        )
