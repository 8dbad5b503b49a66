"""Expiries: until when each block may be used, for those that have an end.

    stored under a TTL  -> now + TTL       used or stored under one -> the later of both
    stored without one  -> never           used without one         -> as it was

Every store and hit takes what is before it along, so a block never ends before what continues it:
nothing is stranded, and what is still good of a chain is a prefix of it. Seconds are those of the
wall clock, since they outlive the process; a clock that jumps makes misses or late ends, no wrong
block.

Invariant: a block's end is not after its parent's. While no block has an end this costs a
comparison a call. Written by the index and the storing and acquiring sides, event loop only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import NOWHERE, BlockTree
from storage.tier import NEVER

if TYPE_CHECKING:
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["NEVER", "Expiries"]


class Expiries:
    """Ends by row. `wall` gives Unix seconds."""

    def __init__(self, tree: BlockTree, wall: Callable[[], float]) -> None:
        self._tree = tree
        self._wall = wall
        self._count = 0

    def __len__(self) -> int:
        """Blocks that have an end."""
        return self._count

    def now(self) -> int:
        return int(self._wall())

    def until(self, ttl_seconds: int) -> int:
        """The end of what is stored or used now; NEVER for a TTL of NEVER."""
        return min(self.now() + ttl_seconds, NEVER)

    def of(self, row: int) -> int:
        second: int = self._tree.columns.expire_second[row]
        return second

    def over(self, row: int) -> bool:
        return bool(self._count) and self.of(row) <= self.now()

    def good_count(self, rows: NDArray[np.int64]) -> int:
        """How many of a chain's first blocks, all cached, are not over."""
        if not self._count:
            return len(rows)
        good = self._tree.columns.array("expire_second")[rows] > self.now()
        return len(rows) if good.all() else int(good.argmin())

    def enter(self, row: int, second: int) -> None:
        """A new block, which nothing continues yet, ends then. What is before it does not earlier.

        REQUIRES: blocks of a chain are entered parents first.
        """
        if second != NEVER:
            self._tree.columns.expire_second[row] = second
            self._count += 1
        self.extend(self._tree.parent(row), second)

    def enter_run(self, rows: list[int], second: int) -> None:
        """The same of new blocks that continue each other."""
        self.extend(self._tree.parent(rows[0]), second)
        if second != NEVER:
            self._tree.columns.array("expire_second")[rows] = second
            self._count += len(rows)

    def extend(self, row: int, second: int) -> None:
        """The block, and all before it, end then or later."""
        if not self._count:
            return
        columns = self._tree.columns
        ends, parents = columns.expire_second, columns.parent
        while row != NOWHERE and ends[row] < second:
            ends[row] = second
            columns.expiry_unsaved[row] = 1
            self._count -= second == NEVER
            row = parents[row]

    def left(self, rows: list[int]) -> None:
        """The blocks are not cached any more."""
        if not self._count:
            return
        ends = self._tree.columns.expire_second
        for row in rows:
            if ends[row] != NEVER:
                ends[row] = NEVER
                self._count -= 1

    def recover(self, found: "RecoveredColumns") -> None:
        """What the SSD said. A crash may have kept a block's later end and not its parent's."""
        ends = self._tree.columns.array("expire_second")
        ends[: len(found)] = found.expire_second
        if (found.expire_second == NEVER).all():
            return
        seconds: list[int] = found.expire_second.tolist()
        for row, parent in enumerate(found.parent_row.tolist()):
            if parent >= 0 and seconds[parent] < seconds[row]:
                seconds[row] = seconds[parent]
        ends[: len(found)] = seconds
        self._count = len(seconds) - seconds.count(NEVER)

    def to_write(self, rows: list[int]) -> list[int]:
        """Ends of blocks whose records are about to be written; empty when none has one."""
        if not self._count:
            return []
        columns = self._tree.columns
        for row in rows:
            columns.expiry_unsaved[row] = 0
        return [columns.expire_second[row] for row in rows]

    def check_integrity(self) -> None:
        """Walks everything."""
        finite = 0
        for row in self._tree:
            parent = self._tree.parent(row)
            assert parent == NOWHERE or self.of(row) <= self.of(parent), "ends after its parent"
            finite += self.of(row) != NEVER
        assert finite == self._count
