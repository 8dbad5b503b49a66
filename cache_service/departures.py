"""Departures: what host memory gives up next, as far as the SSD is concerned.

    unsettled   leaves that the SSD lacks and about which nothing was decided, worst first
    settled     blocks whose leaving is decided: the SSD has them, or will, or does not want them

A block is settled when its end in host memory comes near, and stays so until it leaves, is used, or
its copy on the SSD goes: then it is asked about again. `settled_bytes` is the room that can be made
without waiting, an estimate: some of it may be held, or hang on a block that stays.

Invariant: every leaf that may be a victim, that no pin names and that has no copy on the SSD is
settled or in the heap.
Written by the index, and settled by who decides; event loop only.
"""

from cache_service.block_tree import NOWHERE, BlockTree
from storage.policy.leaf_heap import ABSENT, LeafHeap
from storage.policy.order import EvictionOrder
from storage.tier import rounded

__all__ = ["Departures"]


class Departures:
    """Leaves to decide about, in the standing of host memory's order. O(log n) a leaf."""

    def __init__(self, tree: BlockTree, order: EvictionOrder) -> None:
        self._tree = tree
        self._order = order
        self._leaves = LeafHeap(self._standing)
        self.settled_bytes = 0

    def first(self) -> int | None:
        """The unsettled leaf that is worth least; None when there is none."""
        return self._leaves.first()

    def settled(self, row: int) -> bool:
        return bool(self._tree.columns.settled[row])

    def settle(self, row: int) -> None:
        """The block may leave. REQUIRES: in host memory, not settled."""
        self._tree.columns.settled[row] = 1
        self.settled_bytes += rounded(self._tree.payload_bytes(row))

    def unsettle(self, row: int) -> None:
        """The block was used, or its copy on the SSD went: nothing is decided any more."""
        if self._tree.columns.settled[row]:
            self._clear(row)
            self.offered(row)

    def offered(self, row: int) -> None:
        """A block in host memory may be a victim from now on, or the SSD lacks it again."""
        if self._standing(row) != ABSENT:
            self._leaves.push(row)

    def left(self, row: int) -> None:
        """The block left host memory."""
        if self._tree.columns.settled[row]:
            self._clear(row)
        self._leaves.forget(row)

    def _clear(self, row: int) -> None:
        self._tree.columns.settled[row] = 0
        self.settled_bytes -= rounded(self._tree.payload_bytes(row))

    def _standing(self, row: int) -> int:
        """Of a leaf that nobody holds, that the SSD lacks and about which nothing is decided."""
        columns = self._tree.columns
        if (
            columns.slab_page[row] == NOWHERE
            or columns.segment[row] != NOWHERE
            or columns.settled[row]
            or columns.pins[row]
            or columns.kept[row]  # it is written at once, and not before it leaves
            or columns.first_child[row] != NOWHERE
            or not columns.cached[row]
        ):
            return ABSENT
        return self._order.standing(row)

    def memory_bytes(self) -> int:
        return self._leaves.memory_bytes()

    def check_integrity(self) -> None:
        """Walks everything."""
        tree = self._tree
        rows = [row for row in tree if tree.columns.settled[row]]
        assert all(tree.in_host(row) for row in rows)
        assert self.settled_bytes == sum(rounded(tree.payload_bytes(row)) for row in rows)
        unsettled = {row for row in tree if self._standing(row) != ABSENT}
        self._leaves.check_integrity(unsettled)
