"""Quotas: what owners of blocks may have in each tier; and whose account a block is on.

    acme          an account for acme and all within it ...
    acme/search   ... but acme/search and all within that, which has its own
    *             every organisation without a quota of its own has an account like this

The longest quota that covers an owner is its account, so each block is on one account or on none;
nobody's blocks are on none. Pure, any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtier.scopes import MalformedScopeError, ScopePath

__all__ = ["EVERY_OTHER", "NO_QUOTAS", "Quota", "Quotas", "parse_quotas"]

EVERY_OTHER = "*"

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclass(frozen=True, slots=True)
class Quota:
    """Payload bytes; None: no such bound."""

    host_soft_bytes: int | None = None
    """Above it blocks leave first when anybody needs room."""
    host_hard_bytes: int | None = None
    """Never above it: own blocks leave for own ones."""
    ssd_soft_bytes: int | None = None
    """Above it blocks are not written again when their segment is recycled."""
    ssd_hard_bytes: int | None = None
    """Never above it: no more is written."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """By scope path, and `EVERY_OTHER`."""

    by_path: Mapping[str, Quota] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.by_path)

    def account(self, owner: str) -> str:
        """The name of the account that the owner's blocks are on; "" for none."""
        path = owner
        while path:
            if path in self.by_path:
                return path
            path = path.rpartition("/")[0]
        return owner.partition("/")[0] if EVERY_OTHER in self.by_path else ""

    def quota(self, account: str) -> Quota:
        """REQUIRES: an account's name."""
        return self.by_path.get(account) or self.by_path[EVERY_OTHER]


NO_QUOTAS = Quotas()


def parse_quotas(text: str) -> Quotas:
    """ "acme host_hard=8GiB host_soft=6GiB, * ssd_hard=100GiB". Raises ValueError."""
    found: dict[str, Quota] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        owner, *bounds = entry.split()
        if owner != EVERY_OTHER:
            try:
                owner = str(ScopePath.parse(owner))
            except MalformedScopeError as error:
                raise ValueError(f"{owner}: {error}") from None
        if owner in found:
            raise ValueError(f"{owner} is there twice")
        found[owner] = _quota(owner, bounds)
    return Quotas(found)


def _quota(owner: str, bounds: list[str]) -> Quota:
    sizes: dict[str, int] = {}
    for bound in bounds:
        name, _, size = bound.partition("=")
        key = f"{name}_bytes"
        if key not in Quota.__slots__ or key in sizes:
            raise ValueError(
                f"{owner}: write host_soft, host_hard, ssd_soft or ssd_hard once each, not {name}"
            )
        sizes[key] = _bytes(owner, size)
    if not sizes:
        raise ValueError(f"{owner}: name a bound, as host_hard=8GiB")
    for tier in ("host", "ssd"):
        soft, hard = sizes.get(f"{tier}_soft_bytes"), sizes.get(f"{tier}_hard_bytes")
        if soft is not None and hard is not None and soft > hard:
            raise ValueError(f"{owner}: {tier}_soft is above {tier}_hard, and would mean nothing")
    return Quota(**sizes)


def _bytes(owner: str, text: str) -> int:
    digits = text.rstrip("KMGTiBkmgtb")
    unit = text[len(digits) :].lower()
    if not (digits.isascii() and digits.isdigit()) or unit not in _UNITS:
        raise ValueError(f"{owner}: write a size as 512MiB, not {text!r}")
    return int(digits) * _UNITS[unit]
