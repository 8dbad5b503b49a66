"""What a request says of the cache, and whether that makes sense. Pure, any thread.

Invariant: what passes `check_cache_control` contradicts nothing: a word that would have no effect
is refused, never ignored.
"""

from dataclasses import dataclass

from worker.errors import InvalidCacheControlError
from worker.requests import CacheMode

__all__ = ["CACHE_TIMEOUT_SECONDS_MAX", "CacheControl", "check_cache_control"]

CACHE_TIMEOUT_SECONDS_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class CacheControl:
    """As the client sent it; nothing is checked yet."""

    mode: CacheMode = CacheMode.DEFAULT
    timeout_seconds: float | None = None
    """None: the worker's setting alone."""
    one_off: bool = False


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
        for field, said in (("cache_timeout", seconds is not None), ("one_off", asked.one_off)):
            if said:
                raise InvalidCacheControlError(
                    f"{field} says nothing where cache_mode is BYPASS: nothing is read and nothing"
                    " kept; drop one of them",
                    field=field,
                )
