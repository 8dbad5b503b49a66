"""Pages as the client of the cache service sees them: where restored blocks go, where stored ones
come from.

    load:   take (slabs) or room, push (bytes that came some other way)  ->  settle  ->  landed
    store:  lend  ->  give back

What a page is made of is behind this door: host memory that is written in place
(`host_pages.py`), or a device's that is copied to while the caller goes on (`device_pages.py`).

Invariant: a page is touched only between the making of the object and its `close`, or its `revoke`
where that can be had. Transfer threads call everything but `revoke`, `quiet`, `tiers` and `leases`,
which are for the engine's thread and never block.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvtier.blocks import Tier
from kvtier.keys import BlockHash

__all__ = ["Landing", "LandingProgress", "PageBytes", "PageUse", "RevokedError", "Source", "Spread"]

PageBytes = NDArray[np.uint8]
"""A block's bytes in host memory: one dimension, contiguous, `block_bytes` long."""

Spread = Callable[[int, Callable[[int], bool]], int]
"""Calls work(0..count-1), spread over threads; how many leading calls were True."""


class RevokedError(Exception):
    """The engine wants its pages back: this transfer is to end."""


class PageUse(Protocol):
    """The use of some pages by one transfer."""

    @property
    def page_bytes(self) -> int: ...

    def __len__(self) -> int:
        """Pages."""
        ...

    def close(self) -> None:
        """Returns when no page and no slab is touched any more. Idempotent. Raises what the device
        does, when it is of no use any more."""
        ...

    def revoke(self) -> bool:
        """Whether no page is touched from now on, but by what is under way; calls then raise
        RevokedError. False: that cannot be had, whoever has a page's bytes may still write them."""
        ...

    @property
    def quiet(self) -> bool:
        """Of one that was revoked: nothing is under way any more."""
        ...


class Landing(PageUse, Protocol):
    """Pages that a restore fills, by their index in its chain.

    A page that landed is not touched again.
    """

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Where the leading blocks came from that have landed."""
        ...

    @property
    def leases(self) -> Sequence[str]:
        """The cache service's leases under which this is filled; grows while it is."""
        ...

    def leased(self, lease_id: str) -> None:
        """What comes next is read under this lease."""
        ...

    def take(
        self,
        first: int,
        blocks: Sequence[BlockHash],
        slabs: Sequence[PageBytes],
        checksums: Sequence[int],
    ) -> int:
        """Has slabs moved into pages from `first` on: how many leading ones are what the checksums
        say. What lies behind those is garbage.

        Slabs may be read until their page is settled, or this closed.
        """
        ...

    def room(self, first: int, count: int) -> Sequence[PageBytes]:
        """Host memory to write pages from `first` on into: at least one, `count` at most."""
        ...

    def push(self, first: int, filled: Sequence[PageBytes]) -> None:
        """Leading ones of what `room` gave have what belongs there, verified by the caller."""
        ...

    def settle(self, first: int, count: int, spread: Spread) -> int:
        """Returns when the pages are what was taken or pushed for them, and no slab of theirs is
        read any more: how many leading ones are right. The others hold garbage."""
        ...

    def landed(self, tiers: Sequence[Tier]) -> None:
        """The next pages are settled, and right."""
        ...


class Source(PageUse, Protocol):
    """Pages that a store reads, by their index in its chain."""

    def lend(self, indexes: Sequence[int]) -> AbstractContextManager[Sequence[PageBytes]]:
        """The bytes of these pages, unchanged until the body ends."""
        ...


class LandingProgress:
    """How far a load has come. Written by its thread, read by any."""

    def __init__(self, page_count: int) -> None:
        self._page_count = page_count
        self._tiers: tuple[Tier, ...] = ()
        self._leases: list[str] = []

    @property
    def leases(self) -> Sequence[str]:
        return self._leases

    def leased(self, lease_id: str) -> None:
        self._leases.append(lease_id)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        return self._tiers

    def landed(self, tiers: Sequence[Tier]) -> None:
        """Raises ValueError for more than there are pages."""
        if len(self._tiers) + len(tiers) > self._page_count:
            raise ValueError("more blocks landed than there are pages")
        self._tiers = (*self._tiers, *tiers)
