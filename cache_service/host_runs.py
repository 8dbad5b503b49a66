"""HostRuns: consecutive blocks of a chain come into host memory together, and leave it together.

What `BlockIndex` does block by block, for all of them a column at a time, because a prefix is
stored and forgotten in runs and a run costs little more than a block. Which blocks leave, and in
which order, is the same as one by one.

A part of the index, which keeps the counts and tells whoever follows. Event loop only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from storage.policy.order import EvictionOrder
from storage.tier import PAGE_BYTES, Slab, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HostRuns"]


class HostRuns:
    """Host memory's columns of `tree` and its order, many rows at once."""

    def __init__(self, tree: BlockTree, order: EvictionOrder) -> None:
        self._tree = tree
        self._order = order

    def enter(
        self,
        rows: "NDArray[np.int64]",
        parent: int,
        slabs: Sequence[Slab],
        checksums: Sequence[int],
        second: int,
    ) -> None:
        """Their payloads are in `slabs`, and they were used at `second`. `parent`: of the first.

        REQUIRES: each but the first is the only child of the one before it; in no tier yet.
        """
        columns = self._tree.columns
        offsets = np.array([slab.offset for slab in slabs], np.int64)
        columns.array("slab_page")[rows] = offsets // PAGE_BYTES
        columns.array("host_checksum")[rows] = np.array(checksums, np.uint64)
        columns.array("use_second")[rows] = second
        columns.array("host_children")[rows[:-1]] = 1
        if parent != NOWHERE:
            columns.host_children[parent] += 1
        self._order.insert_run(rows, self._tree.directory.names(rows))

    def leaving(self, slab_bytes: int, count_max: int) -> list[int]:
        """Who leaves next, each followed by the block before it, until somebody else would.

        A block is a leaf once its only child in host memory has left: a child that the SSD alone
        has does not count, and there is none of those below a block that the SSD lacks. Empty when
        nobody may leave, or the next to leave has slabs of another size.
        """
        victim = self._order.victim()
        if victim is None or rounded(self._tree.payload_bytes(victim)) != slab_bytes:
            return []
        columns = self._tree.columns
        parents, kinds, pages, pins = columns.parent, columns.kind, columns.slab_page, columns.pins
        kind, row, rows = kinds[victim], victim, [victim]
        while len(rows) < count_max and not columns.kept[row]:
            row = parents[row]
            if (
                row == NOWHERE
                or pages[row] == NOWHERE
                or pins[row]
                or columns.kept[row]
                or kinds[row] != kind
                or columns.host_children[row] != 1
            ):
                break
            rows.append(row)
        return rows[: self._order.leaving_run(rows)]

    def leave(self, rows: Sequence[int]) -> list[Slab]:
        """Their slabs, in order. REQUIRES: a result of `leaving`, and nothing happened since."""
        columns, at = self._tree.columns, np.array(rows)
        slabs = self._tree.slabs(rows)
        self._order.evict_run(rows)
        columns.array("slab_page")[at] = NOWHERE
        columns.array("host_children")[at[1:]] = 0
        before = columns.parent[rows[-1]]
        if before != NOWHERE:
            columns.host_children[before] -= 1
        return slabs
