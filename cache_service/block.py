"""Block: one entry of the index. Written by `BlockIndex` only; the rest of the room reads it.

Children hang in a doubly linked list through their siblings: adding and removing one is O(1), and
the usual block with one child costs no list object. Event loop only.
"""

from collections.abc import Iterator

from kvtier.keys import BlockHash, NamespaceId
from storage.tier import NO_PARENT, BlockRecord, Slab, SsdLocation

__all__ = ["Block", "SegmentLoad"]


class Block:
    """A cached block: `slab` is its copy in host memory, `location` its record on the SSD."""

    __slots__ = (
        "block_hash",
        "cached",
        "checksum",
        "first_child",
        "host_children",
        "location",
        "namespace_id",
        "next_sibling",
        "parent",
        "payload_bytes",
        "pins",
        "previous_sibling",
        "slab",
        "ssd_children",
    )

    def __init__(
        self,
        block_hash: BlockHash,
        parent: "Block | None",
        namespace_id: NamespaceId,
        payload_bytes: int,
    ) -> None:
        self.block_hash = block_hash
        self.parent = parent
        self.namespace_id = namespace_id
        self.payload_bytes = payload_bytes
        self.slab: Slab | None = None
        self.checksum = 0
        """xxh3-64 of the copy in host memory; the SSD's copy may have been computed elsewhere."""
        self.location: SsdLocation | None = None
        self.pins = 0
        """Leases, reservations, reads and writes in flight that hold this block."""
        self.cached = True
        """False from the moment the block left the index."""
        self.host_children = 0
        self.ssd_children = 0
        self.first_child: Block | None = None
        self.next_sibling: Block | None = None
        self.previous_sibling: Block | None = None

    @property
    def parent_hash(self) -> BlockHash:
        return NO_PARENT if self.parent is None else self.parent.block_hash

    @property
    def record_offset(self) -> int:
        """Where in its segment the record lies. REQUIRES: on the SSD."""
        assert self.location is not None
        return self.location.offset

    def host_record(self) -> BlockRecord:
        """The record of the copy in host memory."""
        return self._record(self.checksum)

    def ssd_record(self) -> BlockRecord:
        """The record of the copy on the SSD. REQUIRES: there is one."""
        assert self.location is not None
        return self._record(self.location.checksum)

    def _record(self, checksum: int) -> BlockRecord:
        return BlockRecord(
            self.block_hash, self.parent_hash, self.namespace_id, self.payload_bytes, checksum
        )

    def children(self) -> Iterator["Block"]:
        child = self.first_child
        while child is not None:
            yield child
            child = child.next_sibling

    def adopt(self, child: "Block") -> None:
        child.next_sibling = self.first_child
        if self.first_child is not None:
            self.first_child.previous_sibling = child
        self.first_child = child

    def disown(self, child: "Block") -> None:
        before, after = child.previous_sibling, child.next_sibling
        if before is None:
            self.first_child = after
        else:
            before.next_sibling = after
        if after is not None:
            after.previous_sibling = before
        child.previous_sibling = child.next_sibling = None


class SegmentLoad:
    """What lies in one segment: its live blocks and the sum of their worths."""

    __slots__ = ("blocks", "worth")

    def __init__(self) -> None:
        self.blocks: set[Block] = set()
        self.worth = 0

    def add(self, block: Block, worth: int) -> None:
        self.blocks.add(block)
        self.worth += worth

    def discard(self, block: Block, worth: int) -> None:
        self.blocks.discard(block)
        self.worth -= worth
