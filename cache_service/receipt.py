"""Receipt: adds up what a purge takes out, and makes the digest of its hashes.

Invariant: a block is added once. Event loop; the digest is computed on a thread, from bytes that
nobody changes any more.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from cache_service.block_tree import BlockTree
from cache_service.purge_views import CopiesView
from kvtier.blocks import Tier
from kvtier.keys import HASH_BYTES

__all__ = ["Receipt", "hashes_sha256"]


class Receipt:
    """Sums so far."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree
        self._hashes = bytearray()
        self._copies = {Tier.HOST: [0, 0], Tier.SSD: [0, 0]}
        """Copies and payload bytes."""
        self.held_count = 0
        self.look: Callable[[int], None] | None = None
        """Shown each block before it is added."""

    @property
    def block_count(self) -> int:
        return len(self._hashes) // HASH_BYTES

    def add(self, row: int) -> None:
        """A block, while it is still cached."""
        tree = self._tree
        if self.look is not None:
            self.look(row)
        self._hashes += tree.block_hash(row)
        self.held_count += tree.pins(row) > 0
        size = tree.payload_bytes(row)
        for tier, here in ((Tier.HOST, tree.in_host(row)), (Tier.SSD, tree.on_ssd(row))):
            if here:
                self._copies[tier][0] += 1
                self._copies[tier][1] += size

    def copies(self, *, ssd: bool) -> tuple[CopiesView, ...]:
        """By tier; `ssd`: there is one."""
        return tuple(
            CopiesView(tier, count, size)
            for tier, (count, size) in self._copies.items()
            if ssd or tier is not Tier.SSD
        )

    def hashes(self) -> bytes:
        """All of them, in the order in which they were added."""
        return bytes(self._hashes)


def hashes_sha256(hashes: bytes) -> bytes:
    """Over the hashes in the order of their bytes. Any thread; a million take about a second."""
    words = np.frombuffer(hashes, ">u8").reshape(-1, HASH_BYTES // 8).astype(np.uint64)
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    return hashlib.sha256(words[order].astype(">u8").tobytes()).digest()
