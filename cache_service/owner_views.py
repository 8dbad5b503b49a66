"""What crosses the door about owners of blocks. Frozen data, any thread."""

from dataclasses import dataclass

__all__ = ["OwnerView", "OwnersView"]


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
