"""What the size of a session's blocks means for the cache: does it fit, how many may there be.

Invariant: blocks of one namespace have one size, and a block fits the arena. Event loop only.
"""

from cache_service.errors import BlockTooLargeForArenaError
from cache_service.parts import Parts
from cache_service.session import wrong_block_size
from kvtier.keys import NamespaceId
from storage.errors import BlockTooLargeError
from storage.tier import rounded

__all__ = ["check_block_size", "expect_blocks"]

ROWS_AHEAD_MAX = 8_000_000
"""Blocks for which the index takes address space when a session opens; more cost a pause later."""


def check_block_size(parts: Parts, namespace_id: NamespaceId, block_bytes: int) -> None:
    """Raises InvalidBlockSizeError, BlockTooLargeForArenaError."""
    known = parts.index.namespace_payload_bytes(namespace_id)
    if known is not None and known != block_bytes:
        raise wrong_block_size(block_bytes, known)
    try:
        parts.arena.slab_bytes(block_bytes)
    except BlockTooLargeError as error:
        raise BlockTooLargeForArenaError(str(error), **error.metadata) from error


def expect_blocks(parts: Parts, block_bytes: int) -> None:
    """Makes room in the index for as many blocks of this size as the tiers hold, and has the SSD's
    admission look at it."""
    capacity = parts.arena.capacity_bytes
    if parts.cold is not None:
        ssd = parts.cold.ssd
        capacity += ssd.stats().capacity_bytes
        parts.cold.admission.expect(block_bytes, ssd.record_bytes(block_bytes))
    parts.index.tree.reserve(min(capacity // rounded(block_bytes), ROWS_AHEAD_MAX))
