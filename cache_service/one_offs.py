"""OneOffs: blocks in host memory that are said not to be wanted again; the first to leave.

    stored as one-off --> marked --> leaves before all others, unwritten
                             \\--> wanted by who does not say so: lifted, a block like others

Invariant: a marked block is in host memory alone, and what continues it is marked too; every marked
leaf that may be a victim is found by `first`. They are in the policy's order too, so that a lifted
one has its place there; what the policy learns from evictions it does not learn from theirs.
Written by the index and the storing side, event loop only.
"""

from collections.abc import Iterable

from cache_service.block_tree import NOWHERE, BlockTree
from storage.policy.leaf_heap import ABSENT, LeafHeap
from storage.policy.order import EvictionOrder

__all__ = ["OneOffs"]


class OneOffs:
    """Marks, and the marked leaves in the standing of host memory's order. O(log n) a leaf."""

    def __init__(self, tree: BlockTree, order: EvictionOrder) -> None:
        self._tree = tree
        self._order = order
        self._leaves = LeafHeap(self._standing)
        self._count = 0

    def __len__(self) -> int:
        """Marked blocks."""
        return self._count

    def __contains__(self, row: int) -> bool:
        return bool(self._tree.columns.one_off[row])

    def mark(self, row: int) -> None:
        """REQUIRES: cached, not marked, and about to get its copy in host memory."""
        assert not self._tree.columns.one_off[row]
        self._tree.columns.one_off[row] = 1
        self._count += 1

    def lift(self, rows: Iterable[int]) -> list[int]:
        """Makes blocks like others; which of `rows` were marked, in their order."""
        if not self._count:
            return []
        lifted = [row for row in rows if self._tree.columns.one_off[row]]
        for row in lifted:
            self._clear(row)
        return lifted

    def offered(self, row: int) -> None:
        """A block in host memory may be a victim from now on."""
        if self._tree.columns.one_off[row]:
            self._leaves.push(row)

    def left(self, row: int) -> None:
        """The block left host memory."""
        if self._tree.columns.one_off[row]:
            self._clear(row)

    def first(self) -> int | None:
        """The marked leaf that leaves next; None when there is none."""
        return self._leaves.first() if self._count else None

    def leaving(self, count: int) -> list[int]:
        """Up to `count` of them, in order. Changes nothing."""
        return self._leaves.least(count) if self._count else []

    def memory_bytes(self) -> int:
        return self._leaves.memory_bytes()

    def check_integrity(self) -> None:
        """Walks everything."""
        tree = self._tree
        marked = [row for row in tree if tree.columns.one_off[row]]
        assert len(marked) == self._count
        assert all(tree.in_host(row) and not tree.on_ssd(row) for row in marked)
        assert all(child in self for row in marked for child in tree.children(row))
        self._leaves.check_integrity({row for row in marked if self._standing(row) != ABSENT})

    def _clear(self, row: int) -> None:
        self._tree.columns.one_off[row] = 0
        self._count -= 1
        self._leaves.forget(row)

    def _standing(self, row: int) -> int:
        columns = self._tree.columns
        if (
            not columns.one_off[row]
            or columns.pins[row]
            or columns.slab_page[row] == NOWHERE
            or columns.first_child[row] != NOWHERE
            or not columns.cached[row]
        ):
            return ABSENT
        return self._order.standing(row)
