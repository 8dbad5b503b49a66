"""What crosses the storage room's door: records, locations, reports. Frozen data, any thread.

What is made for each block that moves is a named tuple: a quarter of what a frozen dataclass takes.
"""

from dataclasses import dataclass
from typing import NamedTuple, NewType

from kvtier.keys import BlockHash, NamespaceId

__all__ = [
    "NEVER",
    "NO_PARENT",
    "PAGE_BYTES",
    "BlockRecord",
    "RecoveryReport",
    "SegmentId",
    "SegmentState",
    "Slab",
    "SsdLocation",
    "rounded",
]

SegmentId = NewType("SegmentId", int)

PAGE_BYTES = 4096
"""Alignment of slabs, records and direct I/O."""

NO_PARENT = BlockHash(bytes(32))
"""Parent of the first block of a chain."""

NEVER = 2**32 - 1
"""Unix second at which a block ends that has no end."""


def rounded(size_bytes: int) -> int:
    """`size_bytes` up to the next whole page."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


class BlockRecord(NamedTuple):
    """A block as a tier knows it."""

    block_hash: BlockHash
    parent_hash: BlockHash
    """`NO_PARENT` for the first block of a chain."""
    namespace_id: NamespaceId
    payload_bytes: int
    checksum: int
    """`kvtier.keys.payload_checksum` of the payload."""


class Slab(NamedTuple):
    """A page-aligned run of the arena that holds one block's payload."""

    offset: int
    """Bytes from the start of the arena."""
    size_bytes: int
    """Room in the slab: the block's payload rounded up to whole pages."""


class SsdLocation(NamedTuple):
    """Where a record lies: the header's first byte."""

    segment_id: SegmentId
    generation: int
    """Of the segment when the record was written; a recycled segment has a higher one."""
    offset: int
    payload_bytes: int
    checksum: int
    stored_bytes: int
    """What lies on the disk; fewer than `payload_bytes` where the record has a codec."""


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment's fill, for the owner's choice of what to recycle."""

    segment_id: SegmentId
    generation: int
    state: str
    """"free", "open" or "sealed"."""
    used_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening an SSD tier found.

    `kept` blocks are readable; of them, `repaired` were missing from the index and found in an
    open segment. `dropped` were indexed, or half written, and are not readable.
    """

    kept_count: int
    dropped_count: int
    repaired_count: int
    kept_bytes: int
    duration_seconds: float
    problems: tuple[str, ...] = ()
    """One line for each kind of damage found, for the log."""
