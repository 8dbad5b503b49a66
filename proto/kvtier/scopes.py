"""Who may reuse a block: the ladder of scopes, and the salts by which block hashes express it.

    public  >  organisation  >  project  >  user

A private scope is a path of names, `acme`, `acme/search` or `acme/search/ann`; its salt is derived
from the whole path with a secret of the servers. A request's chain may begin in wider scopes of its
own path and ends in its own; it never touches another path.

Invariant: two paths have the same salt if and only if they are equal, name by name and byte by
byte. Names are never folded, trimmed or normalised: two spellings are two scopes, which costs a
miss and never leaks. Pure, any thread.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from kvtier.keys import PUBLIC_SALT, ChainScope, ScopeSalt

__all__ = [
    "SCOPE_NAME_CHARACTERS_MAX",
    "SECRET_BYTES_MIN",
    "MalformedScopeError",
    "ScopeLevel",
    "ScopePath",
    "chain_scope",
    "scope_runs",
    "scope_salt",
]

SECRET_BYTES_MIN = 32
SCOPE_NAME_CHARACTERS_MAX = 128

RESERVED = frozenset("/,*")
"""Of paths, lists and patterns in settings."""


class MalformedScopeError(ValueError):
    """A name that cannot be one, or a path with a gap."""


class ScopeLevel(IntEnum):
    """The rungs of the ladder, widest first; also how many names a path of that rung has."""

    PUBLIC = 0
    ORGANISATION = 1
    PROJECT = 2
    USER = 3


@dataclass(frozen=True, slots=True)
class ScopePath:
    """A private scope. Later names are empty from the first empty one on."""

    organisation: str
    project: str = ""
    user: str = ""

    def __post_init__(self) -> None:
        """Raises MalformedScopeError."""
        if not self.organisation:
            raise MalformedScopeError("the organisation has no name")
        if self.user and not self.project:
            raise MalformedScopeError("a user belongs to a project; name the project too")
        for kind, name in zip(("organisation", "project", "user"), self.names, strict=False):
            _check_name(kind, name)

    @property
    def names(self) -> tuple[str, ...]:
        """One to three."""
        return tuple(name for name in (self.organisation, self.project, self.user) if name)

    @property
    def level(self) -> ScopeLevel:
        return ScopeLevel(len(self.names))

    def at(self, level: ScopeLevel) -> "ScopePath":
        """The scope of rung `level`, at most its own and not public, on this path."""
        if not ScopeLevel.PUBLIC < level <= self.level:
            raise ValueError(f"{self} has no rung {level.name.lower()}")
        return ScopePath(*self.names[:level])

    def covers(self, other: "ScopePath") -> bool:
        """Whether `other` is this scope or a narrower one inside it."""
        return other.names[: self.level] == self.names

    def __str__(self) -> str:
        return "/".join(self.names)

    @classmethod
    def parse(cls, text: str) -> "ScopePath":
        """Inverse of `str`. Raises MalformedScopeError."""
        names = text.split("/")
        if len(names) > ScopeLevel.USER or not all(names):
            raise MalformedScopeError(
                "a scope is ORGANISATION, ORGANISATION/PROJECT or ORGANISATION/PROJECT/USER"
            )
        return cls(*names)


def scope_salt(secret: bytes, *path: str) -> ScopeSalt:
    """Salt of the scope `path` (organisation, project, user), derived with a server's secret.

    The client never supplies it. Raises ValueError for an empty path or a secret under 32 bytes.
    """
    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"the scope secret must have at least {SECRET_BYTES_MIN} bytes")
    if not path or not all(path):
        raise ValueError("a private scope needs a path of non-empty names")
    encoded = b"".join(len(p.encode()).to_bytes(4, "little") + p.encode() for p in path)
    return ScopeSalt(hmac.digest(secret, b"kvtier-scope" + encoded, "sha256"))


def chain_scope(secret: bytes, path: ScopePath, ends: Sequence[int]) -> ChainScope:
    """The scopes of a chain that ends in `path`.

    `ends`: for public and each rung above `path`, the block at which it has ended; ascending.
    """
    rungs = [scope_salt(secret, *path.names[:count]) for count in range(1, path.level + 1)]
    return ChainScope((PUBLIC_SALT, *rungs), tuple(ends))


def scope_runs(path: ScopePath, ends: Sequence[int]) -> tuple[tuple[str, int | None], ...]:
    """(scope, the block at which it has ended) of each scope that has blocks in the chain that
    `chain_scope` makes of these; "" is public, and the last scope, `path`, has no end."""
    names = ["", *(str(path.at(ScopeLevel(level))) for level in range(1, path.level + 1))]
    runs, first = list[tuple[str, int | None]](), 0
    for name, end in zip(names, ends, strict=False):
        if first < end:
            runs.append((name, end))
            first = end
    return (*runs, (names[-1], None))


def _check_name(kind: str, name: str) -> None:
    if len(name) > SCOPE_NAME_CHARACTERS_MAX:
        raise MalformedScopeError(
            f"the {kind}'s name has {len(name)} characters; at most {SCOPE_NAME_CHARACTERS_MAX}"
        )
    if not name.isprintable() or any(c.isspace() or c in RESERVED for c in name):
        raise MalformedScopeError(
            f"the {kind}'s name holds a space, an invisible character or one of / , *"
        )
