"""BlockIndex: the single writer of "what is cached", in both tiers.

A `Block` is an index entry: which block it is, its parent and children, where its copies lie, and
how many hold it (pins). Other files of this room hold on to Blocks and read them; every change goes
through the methods here.

Invariants:
  1. Every block's parent is cached too, in some tier, or the block is the first of its chain.
  2. A block on the SSD has its parent on the SSD: descendants of a block leave the SSD with it.
  3. A copy leaves host memory for room only while no child has a copy there and nobody pins it.
  4. A pinned block's slab is never freed. A block that had to leave while pinned (corrupt, or an
     ancestor was) is invisible at once and keeps its slab until the last pin goes.
So no block is ever stranded: whoever finds a block finds every block before it.

Runs on the event loop only. An object per block is the simplest thing that works to about a million
blocks; the interface lets rows and columns take its place.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from cache_service.block import Block, SegmentLoad
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.eviction import EvictionOrder
from storage.host.arena import HostArena
from storage.tier import SegmentId, Slab, SsdLocation

__all__ = ["BlockIndex"]


class BlockIndex:
    """Blocks by hash, the order in which they leave, and who holds them."""

    def __init__(self, arena: HostArena, evicted_memory_count: int) -> None:
        self._arena = arena
        self._blocks: dict[BlockHash, Block] = {}
        self._namespaces: dict[NamespaceId, tuple[int, int]] = {}
        """Namespace -> (blocks cached, payload bytes of each)."""
        self._host: EvictionOrder[Block] = EvictionOrder()
        self._ssd: EvictionOrder[Block] = EvictionOrder()
        self._segments: dict[SegmentId, SegmentLoad] = {}
        self._pinned: set[Block] = set()
        self._gone: OrderedDict[BlockHash, MissReason] = OrderedDict()
        self._gone_count_max = evicted_memory_count
        self.host_payload_bytes = 0
        self.ssd_payload_bytes = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks.values())

    # -- asking ------------------------------------------------------------------------------------

    def get(self, block_hash: BlockHash) -> Block | None:
        return self._blocks.get(block_hash)

    def absence(self, block_hash: BlockHash) -> MissReason:
        """Why a block that is not cached is not, as far as the index remembers."""
        return self._gone.get(block_hash, MissReason.NEVER_STORED)

    def namespace_payload_bytes(self, namespace_id: NamespaceId) -> int | None:
        """Payload size of the blocks cached for a namespace; None when there are none."""
        known = self._namespaces.get(namespace_id)
        return known[1] if known is not None else None

    @property
    def host_count(self) -> int:
        return len(self._host)

    @property
    def ssd_count(self) -> int:
        return len(self._ssd)

    # -- copies come ---------------------------------------------------------------------------

    def add(
        self,
        block_hash: BlockHash,
        parent: Block | None,
        namespace_id: NamespaceId,
        payload_bytes: int,
    ) -> Block:
        """Enters a block; its first copy must follow before the event loop is given away.

        REQUIRES: the hash is not cached; `parent` is.
        """
        assert block_hash not in self._blocks
        assert parent is None or parent.cached
        block = Block(block_hash, parent, namespace_id, payload_bytes)
        self._blocks[block_hash] = block
        if parent is not None:
            parent.adopt(block)
        count = self._namespaces.get(namespace_id, (0, 0))[0]
        self._namespaces[namespace_id] = (count + 1, payload_bytes)
        self._gone.pop(block_hash, None)
        return block

    def put_host(self, block: Block, slab: Slab, checksum: int) -> None:
        """The block's payload is in `slab`, whole and immutable from now on.

        REQUIRES: cached, no copy in host memory.
        """
        assert block.cached
        assert block.slab is None
        block.slab = slab
        block.checksum = checksum
        self.host_payload_bytes += block.payload_bytes
        self._host.insert(block, self._ssd.uses(block) if block in self._ssd else 1)
        if block.parent is not None:
            block.parent.host_children += 1
            self._review(block.parent)
        self._review(block)

    def put_ssd(self, block: Block, location: SsdLocation) -> None:
        """The block's record is durable at `location`.

        REQUIRES: cached, not on the SSD, and its parent is.
        """
        assert block.cached
        assert block.location is None
        assert block.parent is None or block.parent.location is not None
        block.location = location
        self.ssd_payload_bytes += block.payload_bytes
        self._ssd.insert(block, self._host.uses(block) if block in self._host else 1)
        if block.parent is not None:
            block.parent.ssd_children += 1
        self._load(location.segment_id).add(block, self._ssd.worth(block))
        self._review(block)

    def move_ssd(self, block: Block, location: SsdLocation) -> None:
        """The block's record was written again elsewhere. REQUIRES: it is on the SSD."""
        assert block.location is not None
        worth = self._ssd.worth(block)
        self._load(block.location.segment_id).discard(block, worth)
        block.location = location
        self._load(location.segment_id).add(block, worth)

    # -- use ---------------------------------------------------------------------------------------

    def use(self, blocks: Iterable[Block]) -> None:
        """Counts a use of each block in every tier that holds it."""
        for block in blocks:
            if block.slab is not None and block.cached:
                self._host.use(block)
            if block.location is not None:
                before = self._ssd.worth(block)
                self._ssd.use(block)
                load = self._segments[block.location.segment_id]
                load.worth += self._ssd.worth(block) - before

    def refresh(self, blocks: Iterable[Block]) -> None:
        """Notes that the blocks are wanted now, without counting a use."""
        for block in blocks:
            if block.slab is not None and block.cached:
                self._host.refresh(block)

    def pin(self, block: Block) -> None:
        """Holds a block: neither copy leaves for room. Ends with one `unpin`."""
        block.pins += 1
        if block.pins == 1:
            self._pinned.add(block)
            if block.slab is not None and block.cached:
                self._host.withhold(block)

    def unpin(self, block: Block) -> None:
        assert block.pins > 0
        block.pins -= 1
        if block.pins:
            return
        self._pinned.discard(block)
        if block.cached:
            self._review(block)
        elif block.slab is not None:
            self._arena.free(block.slab)
            block.slab = None

    # -- copies leave ------------------------------------------------------------------------------

    def evict_host(self) -> Block | None:
        """Frees the slab of the leaf worth least; None when every leaf is held."""
        block = self._host.victim()
        if block is None:
            return None
        self._host.evict(block)
        self._leave_host(block)
        if block.location is None:
            self._leave(block, MissReason.EVICTED)
        return block

    def drop(self, block: Block, reason: MissReason) -> list[BlockHash]:
        """Takes a block and everything after it out of every tier, pinned or not.

        Returns the hashes whose SSD records are to be forgotten.
        """
        below = self._subtree(block)
        forgotten = []
        for each in reversed(below):
            if each.location is not None:
                self._leave_ssd(each)
                forgotten.append(each.block_hash)
            if each.slab is not None:
                self._host.remove(each)
                self._leave_host(each)
            self._leave(each, reason if each is block else MissReason.EVICTED)
        return forgotten

    def drop_ssd(self, block: Block, reason: MissReason) -> list[BlockHash]:
        """Takes a block and everything after it off the SSD; what is in host memory stays there.

        A block without another copy leaves the cache with all that follows it. Returns the hashes
        whose SSD records are to be forgotten.
        """
        below = [each for each in self._subtree(block) if each.location is not None]
        for each in reversed(below):
            self._leave_ssd(each)
        forgotten = [each.block_hash for each in below]
        for each in below:
            if each.cached and each.slab is None:
                self.drop(each, reason if each is block else MissReason.EVICTED)
        for each in below:
            if each.cached:
                self._review(each)
        return forgotten

    # -- segments ----------------------------------------------------------------------------------

    def segment_blocks(self, segment_id: SegmentId) -> list[Block]:
        """Blocks whose record lies in a segment, in the order in which they were written."""
        load = self._segments.get(segment_id)
        if load is None:
            return []
        return sorted(load.blocks, key=lambda block: block.record_offset)

    def segment_worth(self, segment_id: SegmentId) -> int:
        """What a segment's live blocks are worth above the clock, under the policy."""
        load = self._segments.get(segment_id)
        return 0 if load is None else load.worth - len(load.blocks) * self._ssd.clock

    def ssd_standing(self, block: Block) -> tuple[int, int]:
        return self._ssd.standing(block)

    def above_line(self, block: Block) -> bool:
        """True when a block on the SSD was used again and has not aged out since."""
        return self._ssd.uses(block) > 1 and self._ssd.worth(block) > self._ssd.clock

    def age_ssd(self, worth: int) -> None:
        """Blocks of this worth had to leave the SSD: its clock moves on."""
        self._ssd.advance(worth)

    def protected(self) -> set[Block]:
        """Every pinned block and everything before one: what may not leave now."""
        held: set[Block] = set()
        for pinned in self._pinned:
            block: Block | None = pinned if pinned.cached else None
            while block is not None and block not in held:
                held.add(block)
                block = block.parent
        return held

    # -- below -------------------------------------------------------------------------------------

    def _review(self, block: Block) -> None:
        """Offers or withholds a block as a victim in host memory: rule 3."""
        if block.slab is None or not block.cached:
            return
        last_copy_with_children = block.location is None and block.first_child is not None
        if block.pins or block.host_children or last_copy_with_children:
            self._host.withhold(block)
        else:
            self._host.offer(block)

    def _leave_host(self, block: Block) -> None:
        self.host_payload_bytes -= block.payload_bytes
        if not block.pins:
            assert block.slab is not None
            self._arena.free(block.slab)
            block.slab = None
        if block.parent is not None:
            block.parent.host_children -= 1
            self._review(block.parent)

    def _leave_ssd(self, block: Block) -> None:
        assert block.location is not None
        self._segments[block.location.segment_id].discard(block, self._ssd.worth(block))
        self._ssd.remove(block)
        block.location = None
        self.ssd_payload_bytes -= block.payload_bytes
        if block.parent is not None:
            block.parent.ssd_children -= 1

    def _leave(self, block: Block, reason: MissReason) -> None:
        assert block.first_child is None
        block.cached = False
        del self._blocks[block.block_hash]
        parent = block.parent
        if parent is not None:
            parent.disown(block)
            self._review(parent)
        count, size = self._namespaces[block.namespace_id]
        if count == 1:
            del self._namespaces[block.namespace_id]
        else:
            self._namespaces[block.namespace_id] = (count - 1, size)
        self._gone[block.block_hash] = reason
        if len(self._gone) > self._gone_count_max:
            self._gone.popitem(last=False)

    def _load(self, segment_id: SegmentId) -> SegmentLoad:
        return self._segments.setdefault(segment_id, SegmentLoad())

    @staticmethod
    def _subtree(block: Block) -> list[Block]:
        """A block and everything after it, parents before children."""
        found = [block]
        for each in found:
            found.extend(each.children())
        return found

    def check_integrity(self) -> None:
        """Walks everything; for tests."""
        for block_hash, block in self._blocks.items():
            self._check_block(block_hash, block)
        assert len(self._host) == sum(b.slab is not None for b in self)
        assert len(self._ssd) == sum(b.location is not None for b in self)
        assert self.host_payload_bytes == sum(b.payload_bytes for b in self if b.slab is not None)
        assert self.ssd_payload_bytes == sum(b.payload_bytes for b in self if b.location)
        assert sum(count for count, _ in self._namespaces.values()) == len(self)
        for segment_id, load in self._segments.items():
            assert load.worth == sum(self._ssd.worth(b) for b in load.blocks), segment_id
            for block in load.blocks:
                assert block.location is not None
                assert block.location.segment_id == segment_id
        assert sum(len(load.blocks) for load in self._segments.values()) == len(self._ssd)
        assert len(self._gone) <= self._gone_count_max
        assert self._pinned >= {b for b in self if b.pins}
        self._host.check_integrity()
        self._ssd.check_integrity()

    def _check_block(self, block_hash: BlockHash, block: Block) -> None:
        assert block.cached
        assert block.block_hash == block_hash
        assert block.slab is not None or block.location is not None, "cached nowhere"
        parent = block.parent
        if parent is not None:
            assert self._blocks.get(parent.block_hash) is parent, "stranded: the parent left"
            assert block.location is None or parent.location is not None, "stranded on the SSD"
        children = list(block.children())
        assert all(child.parent is block for child in children)
        assert block.host_children == sum(child.slab is not None for child in children)
        assert block.ssd_children == sum(child.location is not None for child in children)
        assert (block in self._host) == (block.slab is not None)
        assert (block in self._pinned) == (block.pins > 0)
