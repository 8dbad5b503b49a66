"""Who asks, from what a request shows and says.

The key gives organisation and project. A `user` narrows from there: the request's cache scope is
that user's own, so that nobody learns from hits what another user of the same key sent. Names of
users are whatever an application calls them; what a scope cannot be named is percent-encoded, so
that two of them never become one. Pure, any thread.
"""

from dataclasses import dataclass
from urllib.parse import quote

from gateway.errors import InvalidBodyError, KeyMissingError, ServiceClassError
from gateway.keys import ApiKey
from kvtier.scopes import SCOPE_NAME_CHARACTERS_MAX

__all__ = ["Caller", "bearer", "caller_of", "service_class_of", "user_name"]

_UNNAMEABLE = frozenset("/,*%")


@dataclass(frozen=True, slots=True)
class Caller:
    """As the worker is told."""

    key_id: str
    organisation: str
    project: str
    user: str
    """Empty: none; else the request stays within that user's scope."""
    bound: bool = False
    """The key is that user's alone: nobody may ask by it for a wider scope."""


def bearer(authorization: str) -> str:
    """The key that an `Authorization` header shows. Raises KeyMissingError."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise KeyMissingError("send your API key: Authorization: Bearer sk-kvtier-...")
    return text.strip()


def caller_of(key: ApiKey, user: str | None, parameter: str) -> Caller:
    """`user`: as the request says it in `parameter`. Raises InvalidBodyError."""
    own, asked = key.path.user, user_name(user or "", parameter)
    if own and asked not in ("", own):
        raise InvalidBodyError(f"this key is one user's; leave {parameter} out", parameter)
    path = key.path
    return Caller(key.key_id, path.organisation, path.project, own or asked, bound=bool(own))


def user_name(text: str, parameter: str) -> str:
    """A scope's name for a user that an application calls `text`. Raises InvalidBodyError."""
    name = text[: SCOPE_NAME_CHARACTERS_MAX + 1]
    if not name.isprintable() or " " in name or not _UNNAMEABLE.isdisjoint(name):
        name = "".join(each if _plain(each) else quote(each, safe="") for each in name)
    if len(name) > SCOPE_NAME_CHARACTERS_MAX:
        raise InvalidBodyError(
            f"{parameter} may have {SCOPE_NAME_CHARACTERS_MAX} characters (others than letters and"
            " digits may count three times)",
            parameter,
        )
    return name


def _plain(character: str) -> bool:
    return character.isprintable() and character != " " and character not in _UNNAMEABLE


def service_class_of(key: ApiKey, tier: str | None) -> str:
    """What OpenAI calls `service_tier`, as this key may have it; empty: none.

    Raises ServiceClassError.
    """
    if tier in (None, "auto", "default"):
        return key.service_classes[0] if key.service_classes else ""
    assert tier is not None
    if tier not in key.service_classes:
        has = ", ".join(key.service_classes) or "none"
        raise ServiceClassError(
            f"this key may not ask for that service_tier; it has {has}", field="service_tier"
        )
    return tier
