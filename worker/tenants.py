"""Who may send requests, and the cache scope of each.

Invariant: a scope's salt comes from the server's secret and the tenant's name, never from anything
else a client sends. The secret lives in a file of its own (0600): whoever loses it loses the warm
cache, whoever reads it can name other tenants' blocks. Immutable after start, any thread.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from kvtier.keys import ScopeSalt, scope_salt
from kvtier.settings import SettingsError
from worker.errors import TenantUnknownError

__all__ = ["SECRET_BYTES_MIN", "Tenants", "load_scope_secret", "make_scope_secret"]

SECRET_BYTES_MIN = 32


class Tenants:
    """The names this worker serves."""

    def __init__(self, names: Sequence[str], secret: bytes) -> None:
        """`secret`: at least 32 bytes."""
        self._salts = {name: scope_salt(secret, name) for name in names}

    def salt(self, tenant_id: str) -> ScopeSalt:
        """Of the tenant's scope. Raises TenantUnknownError."""
        salt = self._salts.get(tenant_id)
        if salt is None:
            raise TenantUnknownError(
                "no such tenant here; the worker's setting `tenants` lists them"
                if tenant_id
                else "tenant_id is empty; say who asks"
            )
        return salt


def load_scope_secret(path: Path) -> bytes:
    """The secret in `path`. Raises SettingsError."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"scope_secret_file: cannot read {path}: {error.strerror}") from None
    if len(secret) < SECRET_BYTES_MIN:
        raise SettingsError(
            f"scope_secret_file: {path} holds {len(secret)} bytes; at least {SECRET_BYTES_MIN}"
            " random ones are needed (head -c 32 /dev/urandom)"
        )
    return secret


def make_scope_secret(path: Path) -> bytes:
    """The secret in `path`, made there on the first run. Raises SettingsError."""
    temporary = path.with_suffix(".new")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = os.open(temporary, flags, 0o600)
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES_MIN))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
    except OSError as error:
        raise SettingsError(
            f"the scope secret cannot be kept in {path}: {error.strerror}; make that possible, or"
            " choose another data_directory"
        ) from None
    return load_scope_secret(path)
