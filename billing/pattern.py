"""Patterns of names: "*" stands for any run of characters, "?" for one. Pure, any thread."""

import re
from functools import lru_cache

__all__ = ["covers", "fits"]


def fits(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


def covers(pattern: str, other: str) -> bool:
    """Whether certainly every name that `other` fits is one that `pattern` fits."""
    return (
        pattern == other
        or ("*" not in other and "?" not in other and fits(pattern, other))
        or (set(pattern) == {"*"})
    )


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"([*?])", pattern)
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)
