"""LeafTier: a tier of single blocks, leaf first. Host memory, and the SSD when it has no segments.

Invariants: a block's parent is in the tier too; the order is offered exactly the leaves that are
not held; never more than `capacity` blocks.
"""

from collections.abc import Callable

from cache_service.replay.trace import NO_BLOCK
from cache_service.replay.tree import Tree
from storage.policy.order import EvictionOrder

__all__ = ["LeafTier"]

Leave = Callable[[int, int], None]
"""Called with a block that is about to leave for room, and its uses."""


class LeafTier:
    """Every call costs what the policy costs, O(log n) at most."""

    relogged_count = 0
    """Single blocks are never written again."""

    def __init__(
        self,
        tree: Tree,
        order: EvictionOrder,
        capacity: int,
        leave: Leave,
        left: Callable[[int], None],
    ) -> None:
        """`left` is called with each block that left."""
        self.order = order
        self.present = bytearray(len(tree))
        self.write_count = 0
        self.evicted_count = 0
        self._tree = tree
        self._capacity = capacity
        self._leave = leave
        self._left = left
        self._children = [0] * len(tree)
        self._held: dict[int, int] = {}
        """Block -> holders."""

    def __len__(self) -> int:
        return len(self.order)

    def use(self, block: int) -> None:
        self.order.use(block)

    def hold(self, block: int) -> None:
        """`block` stays until it is released, and what is before it, for it is no leaf then."""
        if block != NO_BLOCK:
            self._held[block] = self._held.get(block, 0) + 1
            self.order.withhold(block)

    def release(self, block: int) -> None:
        if block != NO_BLOCK:
            self._let_go(block)
            self._review(block)

    def extend(self, block: int, uses: int) -> bool:
        """Takes in a block after its parent, which is held: the hold passes to the block.

        False, with the parent still held, when there is no room and everything else is held.
        REQUIRES: absent; the parent is present and held, or there is none.
        """
        while len(self.order) >= self._capacity:
            if not self._evict():
                return False
        self.order.insert(block, self._tree.names[block], uses)
        self.present[block] = 1
        self.write_count += 1
        self._held[block] = self._held.get(block, 0) + 1
        parent = self._tree.parents[block]
        if parent != NO_BLOCK:
            self._children[parent] += 1
            self._let_go(parent)
        return True

    def _let_go(self, block: int) -> None:
        left = self._held.pop(block) - 1
        if left:
            self._held[block] = left

    def _evict(self) -> bool:
        block = self.order.victim()
        if block is None:
            return False
        self._leave(block, self.order.uses(block))
        self.order.evict(block)
        self.present[block] = 0
        self.evicted_count += 1
        parent = self._tree.parents[block]
        if parent != NO_BLOCK:
            self._children[parent] -= 1
            self._review(parent)
        self._left(block)
        return True

    def _review(self, block: int) -> None:
        if self.present[block] and not self._children[block] and block not in self._held:
            self.order.offer(block)

    def check_integrity(self) -> None:
        assert len(self.order) == sum(self.present) <= self._capacity
        assert not self._tree.stranded(self.present)
        children = [0] * len(self._tree)
        for block, present in enumerate(self.present):
            parent = self._tree.parents[block]
            if present and parent != NO_BLOCK:
                children[parent] += 1
            assert bool(present) == (block in self.order)
        assert children == self._children
        self.order.check_integrity()
