"""Who may send requests, and the cache scope of each.

The setting `tenants` grants scopes: `acme` lets the organisation's requests share among themselves,
`acme/search` lets the requests of one project do so. A request says who asks (`Caller`); the
longest grant that covers it is the widest scope it can have, and `cache_scope` narrows it from
there, along the caller's own names. The same grant says which priorities a request may ask for
(`acme priority=-2..1`); without a word those up to 0, so that nobody goes before others by himself.

Invariant: a scope's salt comes from the server's secret and the scope's path, never from anything
else a client sends. The secret lives in a file of its own (0600): whoever loses it loses the warm
cache, whoever reads it can name other tenants' blocks. Immutable after start, any thread.
"""

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtier.keys import ChainScope, NamespaceId
from kvtier.prompt_proof import proof_key, request_salt
from kvtier.scopes import (
    SECRET_BYTES_MIN,
    MalformedScopeError,
    ScopeLevel,
    ScopePath,
    chain_scope,
)
from kvtier.settings import SettingsError
from worker.errors import (
    InvalidScopeError,
    PriorityNotGrantedError,
    ScopeTooWideError,
    TenantUnknownError,
)
from worker.prompt_proof import ProofTerms

__all__ = [
    "PRIORITY_MAX",
    "PRIORITY_MIN",
    "Caller",
    "Grant",
    "Tenants",
    "load_scope_secret",
    "make_scope_secret",
]

PRIORITY_MIN = -2
PRIORITY_MAX = 2


@dataclass(frozen=True, slots=True)
class Grant:
    """What an operator grants the requests within a scope."""

    path: ScopePath
    lowest_priority: int = PRIORITY_MIN
    highest_priority: int = 0

    @classmethod
    def parse(cls, text: str) -> "Grant":
        """`PATH` or `PATH priority=LOW..HIGH`. Raises ValueError."""
        path, *words = text.split()
        if not words:
            return cls(ScopePath.parse(path))
        found = re.fullmatch(r"priority=(-?\d)\.\.(-?\d)", words[0])
        if len(words) > 1 or not found:
            raise ValueError(f"{text}: expected PATH or PATH priority=LOW..HIGH")
        low, high = int(found[1]), int(found[2])
        if not PRIORITY_MIN <= low <= high <= PRIORITY_MAX:
            raise ValueError(f"{text}: priorities go from {PRIORITY_MIN} up to {PRIORITY_MAX}")
        return cls(ScopePath.parse(path), low, high)

    def __str__(self) -> str:
        if (self.lowest_priority, self.highest_priority) == (PRIORITY_MIN, 0):
            return str(self.path)
        return f"{self.path} priority={self.lowest_priority}..{self.highest_priority}"


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

    def __init__(self, grants: Sequence[Grant], secret: bytes) -> None:
        """`secret`: at least 32 bytes."""
        self._grants = {grant.path: grant for grant in grants}
        self._secret = secret

    def scope(self, caller: Caller) -> ScopePath:
        """The scope of the caller's request.

        Raises TenantUnknownError, InvalidScopeError, ScopeTooWideError.
        """
        path = _path(caller)
        granted = self._granted(path).path
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
        granted = self._granted(path).path
        return tuple(path.at(ScopeLevel(n)) for n in range(granted.level, path.level + 1))

    def priority(self, caller: Caller, asked: int | None) -> int:
        """The priority of the caller's request; where it asks for none, what is nearest to 0.

        Raises TenantUnknownError, InvalidScopeError, PriorityNotGrantedError.
        """
        grant = self._granted(_path(caller))
        low, high = grant.lowest_priority, grant.highest_priority
        if asked is None:
            return min(max(low, 0), high)
        if not low <= asked <= high:
            raise PriorityNotGrantedError(
                f"priority {asked} is not granted here; ask for {low} to {high}, or for none",
                lowest=low,
                highest=high,
            )
        return asked

    def chain_scope(self, path: ScopePath, ends: Sequence[int]) -> ChainScope:
        """Of a chain that ends in the scope `path`; `ends` as in `kvtier.scopes.chain_scope`."""
        return chain_scope(self._secret, path, ends)

    def proof_terms(
        self,
        caller: Caller,
        request_id: str,
        namespace_id: NamespaceId,
        block_tokens: int,
        digests_max: int,
    ) -> ProofTerms:
        """Of the digests that prove a request's prompt. REQUIRES: `scope` took the caller."""
        names = _path(caller).names
        return ProofTerms.of(
            self._secret, names, request_id, namespace_id, block_tokens, digests_max
        )

    def opening(self, caller: Caller, request_id: str) -> bytes:
        """The salt of a request that the caller's names asked for, if they asked for it.

        Raises TenantUnknownError, InvalidScopeError.
        """
        path = _path(caller)
        self._granted(path)
        return request_salt(proof_key(self._secret, path.names), request_id)

    def _granted(self, path: ScopePath) -> Grant:
        """The longest grant that covers `path`. Raises TenantUnknownError."""
        for level in reversed(ScopeLevel):
            if ScopeLevel.PUBLIC < level <= path.level and path.at(level) in self._grants:
                return self._grants[path.at(level)]
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
