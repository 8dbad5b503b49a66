"""What a request says of the cache, and whether that makes sense. Pure, any thread.

Invariant: what passes `check_cache_control` contradicts nothing: a word that would have no effect
is refused, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.errors import InvalidCacheControlError
from worker.requests import CacheMode

__all__ = ["CACHE_TIMEOUT_SECONDS_MAX", "CacheControl", "check_cache_control", "ttl_seconds"]

CACHE_TIMEOUT_SECONDS_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class CacheControl:
    """As the client sent it; nothing is checked yet."""

    mode: CacheMode = CacheMode.DEFAULT
    timeout_seconds: float | None = None
    """None: the worker's setting alone."""
    one_off: bool = False
    ttl_class: str = ""
    """Empty: none."""


def check_cache_control(asked: CacheControl) -> None:
    """Raises InvalidCacheControlError."""
    seconds = asked.timeout_seconds
    if seconds is not None and not 0.0 <= seconds <= CACHE_TIMEOUT_SECONDS_MAX:
        raise InvalidCacheControlError(
            f"cache_timeout must be 0 to {CACHE_TIMEOUT_SECONDS_MAX:.0f} seconds; leave it unset"
            " for the worker's own limit",
            field="cache_timeout",
        )
    if asked.mode is CacheMode.BYPASS:
        words = {
            "cache_timeout": seconds is not None,
            "one_off": asked.one_off,
            "ttl_class": bool(asked.ttl_class),
        }
        for field, said in words.items():
            if said:
                raise InvalidCacheControlError(
                    f"{field} says nothing where cache_mode is BYPASS: nothing is read and nothing"
                    " kept; drop one of them",
                    field=field,
                )
    if asked.ttl_class and (asked.one_off or asked.mode is CacheMode.READ_ONLY):
        other = "one_off" if asked.one_off else "cache_mode READ_ONLY"
        raise InvalidCacheControlError(
            f"ttl_class asks to keep blocks and {other} not to; drop one of them",
            field="ttl_class",
        )


def ttl_seconds(ttl_class: str, classes: Mapping[str, int]) -> int | None:
    """Of the class; None for none. Raises InvalidCacheControlError."""
    if not ttl_class:
        return None
    if ttl_class not in classes:
        known = ", ".join(classes) or "none"
        raise InvalidCacheControlError(
            f"this worker has no ttl_class of that name; there are: {known}", field="ttl_class"
        )
    return classes[ttl_class]
