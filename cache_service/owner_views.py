"""What crosses the door about owners of blocks. Frozen data, any thread."""

from dataclasses import dataclass

from cache_service.quotas import Quota

__all__ = ["AccountView", "OwnerView", "OwnersView"]


@dataclass(frozen=True, slots=True)
class OwnerView:
    """What an owner has; bytes are payload."""

    path: str
    host_count: int
    host_bytes: int
    ssd_count: int
    ssd_bytes: int


@dataclass(frozen=True, slots=True)
class OwnersView:
    """The largest, and all there are."""

    owners: tuple[OwnerView, ...]
    owner_count: int
    total: OwnerView
    """All owners together, those that are not listed too."""
    accounts: tuple["AccountView", ...] = ()
    """Those on which there is most, as many as owners are listed."""


@dataclass(frozen=True, slots=True)
class AccountView:
    """What counts against a quota; bytes are payload."""

    name: str
    quota: Quota
    host_bytes: int
    host_claimed_bytes: int
    """Of reservations and loads under way."""
    ssd_bytes: int
    ssd_claimed_bytes: int
    """Of blocks that wait to be written, or are."""
