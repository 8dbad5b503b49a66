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

DIGESTED_AT_ONCE = 8192


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

    def add_run(self, rows: list[int]) -> None:
        """Blocks of one size that are on the SSD alone, and that nobody holds."""
        if self.look is not None:
            for row in rows:
                self.look(row)
        self._hashes += self._tree.directory.words(np.array(rows)).tobytes()
        self._copies[Tier.SSD][0] += len(rows)
        self._copies[Tier.SSD][1] += len(rows) * self._tree.payload_bytes(rows[0])

    def copies(self, *, ssd: bool) -> tuple[CopiesView, ...]:
        """By tier; `ssd`: there is one."""
        return tuple(
            CopiesView(tier, count, size)
            for tier, (count, size) in self._copies.items()
            if ssd or tier is not Tier.SSD
        )

    def hashes(self) -> bytearray:
        """All of them, in the order in which they were added; nothing may be added any more."""
        return self._hashes


def hashes_sha256(hashes: bytes | bytearray) -> bytes:
    """Over the hashes in the order of their bytes. Any thread; a million take some seconds, in
    which others have the interpreter after some milliseconds."""
    words = np.frombuffer(hashes, ">u8").reshape(-1, HASH_BYTES // 8)
    order = np.lexsort([words[:, i].astype(np.uint64) for i in (3, 2, 1, 0)])
    each, digest = np.frombuffer(hashes, f"V{HASH_BYTES}"), hashlib.sha256()
    for start in range(0, len(order), DIGESTED_AT_ONCE):
        # Looking up rows does not let others run.
        digest.update(each[order[start : start + DIGESTED_AT_ONCE]].tobytes())
    return digest.digest()
