"""API keys: what they say, how their secrets are kept, and which one a secret opens.

    sk-kvtier-<key id, 16 hex digits>-<secret, 43 characters>

A secret is 256 random bits, so one SHA-256 of it is as hard to turn back as the secret is to guess;
a slow hash would only slow the gateway. Invariant: no object here holds a secret; what is kept is
the digest. Frozen data and pure functions, any thread.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from gateway.errors import KeyChangeError
from kvtier.scopes import MalformedScopeError, ScopePath

__all__ = ["ApiKey", "KeyRing", "KeySecret", "digest_of", "new_key", "revoked", "rotated"]

PREFIX = "sk-kvtier-"
_TEXT = re.compile(rf"{PREFIX}([0-9a-f]{{16}})-([A-Za-z0-9_-]{{43}})")
SECRETS_MAX = 4
"""Of one key at a time: more rotations in one overlap than that are a mistake."""

NAME_CHARACTERS_MAX = 128
CLASSES_MAX = 16


@dataclass(frozen=True, slots=True)
class KeySecret:
    """One text that opens a key. Times: seconds since 1970."""

    digest: bytes
    created_at: int
    expires_at: int | None = None
    """None: for as long as the key."""

    def valid(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Whoever shows one of its secrets asks as its organisation, project and user."""

    key_id: str
    name: str
    path: ScopePath
    """At least organisation and project."""
    created_at: int
    secrets: tuple[KeySecret, ...]
    """Oldest first."""
    service_classes: tuple[str, ...] = ()
    """What requests may ask for; the first is what they get without a word. Empty: none."""
    revoked_at: int | None = None

    def valid(self, now: float) -> bool:
        return self.revoked_at is None and any(each.valid(now) for each in self.secrets)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys, by id."""

    keys: dict[str, ApiKey] = field(default_factory=dict)

    def find(self, text: str, now: float) -> ApiKey | None:
        """The key that `text` opens now. Takes as long whether the key is there or not."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        key = self.keys.get(match[1])
        digest, found = digest_of(text), False
        for each in key.secrets if key is not None else (_NOBODYS,):
            same = hmac.compare_digest(each.digest, digest)
            found = found or (same and each.valid(now))
        return key if key is not None and found and key.revoked_at is None else None

    def with_key(self, key: ApiKey) -> "KeyRing":
        return KeyRing({**self.keys, key.key_id: key})

    def of(self, key_id: str) -> ApiKey:
        """Raises KeyChangeError."""
        key = self.keys.get(key_id)
        if key is None:
            raise KeyChangeError(f"there is no key {key_id}; kvtier keys list shows all")
        return key


_NOBODYS = KeySecret(bytes(32), 0)


def digest_of(text: str) -> bytes:
    """What is kept of a key's text."""
    return hashlib.sha256(b"kvtier api key\0" + text.encode()).digest()


def new_key(
    name: str, path: ScopePath, service_classes: Iterable[str], now: int
) -> tuple[ApiKey, str]:
    """A key and its text, which is nowhere else. Raises KeyChangeError."""
    classes = tuple(dict.fromkeys(service_classes))
    _check_name("name", name, empty=True)
    for each in classes:
        _check_name("a service class", each)
    if len(classes) > CLASSES_MAX:
        raise KeyChangeError(f"a key may have {CLASSES_MAX} service classes")
    key_id = secrets.token_hex(8)
    text = _new_text(key_id)
    secret = KeySecret(digest_of(text), now)
    return ApiKey(key_id, name, path, now, (secret,), classes), text


def rotated(key: ApiKey, overlap_seconds: int, now: int) -> tuple[ApiKey, str]:
    """The key with a new secret; those before end after the overlap. Raises KeyChangeError."""
    if key.revoked_at is not None:
        raise KeyChangeError(f"key {key.key_id} is revoked; create another")
    end = now + overlap_seconds
    old = [
        replace(each, expires_at=end if each.expires_at is None else min(each.expires_at, end))
        for each in key.secrets
        if each.valid(now)
    ]
    kept = tuple(each for each in old if each.valid(now))
    if len(kept) >= SECRETS_MAX:
        raise KeyChangeError(
            f"key {key.key_id} has {len(kept)} secrets that are valid still; wait until one ends,"
            " or rotate with --overlap 0"
        )
    text = _new_text(key.key_id)
    return replace(key, secrets=(*kept, KeySecret(digest_of(text), now))), text


def revoked(key: ApiKey, now: int) -> ApiKey:
    """The key, of no use any more; what it was stays told. Idempotent."""
    return key if key.revoked_at is not None else replace(key, revoked_at=now)


def path_of(organisation: str, project: str, user: str) -> ScopePath:
    """Raises KeyChangeError."""
    if not project:
        raise KeyChangeError("a key has a project; leave --project out for `default`")
    if "%" in f"{organisation}{project}{user}":
        # Users that requests name are written with it where their names cannot be a scope's: a key
        # of such a name would be of somebody whom another key's application calls otherwise.
        raise KeyChangeError("names of keys' organisations, projects and users hold no %")
    try:
        return ScopePath(organisation, project, user)
    except MalformedScopeError as error:
        raise KeyChangeError(str(error)) from None


def _new_text(key_id: str) -> str:
    return f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}"


def _check_name(kind: str, text: str, empty: bool = False) -> None:
    if (not text and not empty) or len(text) > NAME_CHARACTERS_MAX or not text.isprintable():
        raise KeyChangeError(f"{kind} has 1 to {NAME_CHARACTERS_MAX} characters, all visible")
