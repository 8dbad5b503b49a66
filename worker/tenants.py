"""Who may send requests, and the cache scope of each.

The setting `tenants` grants scopes: `acme` lets the organisation's requests share among themselves,
`acme/search` lets the requests of one project do so. A request says who asks (`Caller`); the
longest grant that covers it is the widest scope it can have, and `cache_scope` narrows it from
there, along the caller's own names.

Invariant: a scope's salt comes from the server's secret and the scope's path, never from anything
else a client sends. The secret lives in a file of its own (0600): whoever loses it loses the warm
cache, whoever reads it can name other tenants' blocks. Immutable after start, any thread.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtier.keys import ChainScope
from kvtier.scopes import (
    SECRET_BYTES_MIN,
    MalformedScopeError,
    ScopeLevel,
    ScopePath,
    chain_scope,
)
from kvtier.settings import SettingsError
from worker.errors import InvalidScopeError, ScopeTooWideError, TenantUnknownError

__all__ = ["Caller", "Tenants", "load_scope_secret", "make_scope_secret"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the request says it; nothing is checked yet."""

    tenant_id: str
    """The organisation."""
    project_id: str = ""
    user_id: str = ""
    cache_scope: ScopeLevel | None = None
    """The rung to stay within; None: the widest that is granted."""


class Tenants:
    """The scopes this worker serves."""

    def __init__(self, grants: Sequence[ScopePath], secret: bytes) -> None:
        """`secret`: at least 32 bytes."""
        self._grants = frozenset(grants)
        self._secret = secret

    def scope(self, caller: Caller) -> ScopePath:
        """The scope of the caller's request.

        Raises TenantUnknownError, InvalidScopeError, ScopeTooWideError.
        """
        path = _path(caller)
        granted = self._granted(path)
        level = granted.level if caller.cache_scope is None else caller.cache_scope
        if level < granted.level:
            raise ScopeTooWideError(
                f"this worker lets {granted} share blocks within that only; leave cache_scope"
                " empty or name a narrower one"
            )
        if level > path.level:
            missing = "project_id" if path.level is ScopeLevel.ORGANISATION else "user_id"
            raise InvalidScopeError(f"cache_scope is {level.name.lower()}, but {missing} is empty")
        return path.at(level)

    def rungs(self, caller: Caller) -> tuple[ScopePath, ...]:
        """Every private scope that requests of the caller's names can have, widest first.

        Raises TenantUnknownError, InvalidScopeError.
        """
        path = _path(caller)
        granted = self._granted(path)
        return tuple(path.at(ScopeLevel(n)) for n in range(granted.level, path.level + 1))

    def chain_scope(self, path: ScopePath, ends: Sequence[int]) -> ChainScope:
        """Of a chain that ends in the scope `path`; `ends` as in `kvtier.scopes.chain_scope`."""
        return chain_scope(self._secret, path, ends)

    def _granted(self, path: ScopePath) -> ScopePath:
        """The longest grant that covers `path`. Raises TenantUnknownError."""
        for level in reversed(ScopeLevel):
            if ScopeLevel.PUBLIC < level <= path.level and path.at(level) in self._grants:
                return path.at(level)
        # One answer whichever name is unknown: it tells nobody which projects a tenant has.
        raise _unknown()


def _path(caller: Caller) -> ScopePath:
    """Raises TenantUnknownError, InvalidScopeError."""
    if not caller.tenant_id:
        raise TenantUnknownError("tenant_id is empty; say who asks")
    try:
        ScopePath(caller.tenant_id)
    except MalformedScopeError:
        raise _unknown() from None
    try:
        return ScopePath(caller.tenant_id, caller.project_id, caller.user_id)
    except MalformedScopeError as error:
        raise InvalidScopeError(str(error)) from None


def _unknown() -> TenantUnknownError:
    return TenantUnknownError("no such tenant here; the worker's setting `tenants` lists them")


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
