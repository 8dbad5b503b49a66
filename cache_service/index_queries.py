"""IndexQueries: what the index knows and can be asked, without changing anything.

    tree       rows by hash, lineage, places        (block_tree.py: everybody reads it)
    orders     who leaves host memory, who the SSD  (storage/policy)
    segments   what lies in which segment           (segment_loads.py)
    departures who must be written before it leaves (departures.py: only when that is asked for)
    expiries   until when a block may be used       (expiries.py)
    owners     who owns what, and what each has    (block_owners.py: nothing is allowed by it)
    unit ends  where a hit of whole units may end   (unit_ends.py)
    one-offs   who is said not to be wanted again   (one_offs.py: they leave host memory first)
    keeping    whom pins name                       (keeping.py: their last copy does not leave)
    changes    copies that came and left            (events/changes.py: only when somebody follows)

Invariant: nothing here writes; `BlockIndex`, the one class below it, does. Event loop only.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cache_service.absences import Absences
from cache_service.accounts import Accounts
from cache_service.block_owners import OwnerTable
from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.departures import Departures
from cache_service.events.changes import Changes
from cache_service.expiries import Expiries
from cache_service.host_runs import HostRuns
from cache_service.integrity import check_copies
from cache_service.keeping import Keeping
from cache_service.one_offs import OneOffs
from cache_service.segment_loads import SegmentLoads
from cache_service.unit_ends import UnitEnds
from kvtier.keys import NamespaceId
from storage.host.arena import HostArena
from storage.policy.order import EvictionOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IndexQueries"]


class IndexQueries:
    """The index's state, and what can be asked of it."""

    def __init__(
        self,
        arena: HostArena,
        host_order: EvictionOrder,
        ssd_order: EvictionOrder,
        evicted_memory_count: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds, monotonic. `wall`: Unix seconds."""
        self._arena = arena
        self._clock = clock
        self._started = clock()
        self.tree = BlockTree()
        """For reading only."""
        self.absences = Absences(evicted_memory_count)
        self._host = host_order
        self._ssd = ssd_order
        self._runs = HostRuns(self.tree, host_order)
        self.segments = SegmentLoads(self.tree, ssd_order)
        """For reading only."""
        self.expiries = Expiries(self.tree, wall)
        """To ask, enter and extend."""
        self.owners = OwnerTable(self.tree)
        """To ask, and to enter new blocks."""
        self.accounts: Accounts | None = None
        """To ask and claim; None where no quotas are set."""
        self.unit_ends = UnitEnds(self.tree)
        """To ask and mark."""
        self.one_offs = OneOffs(self.tree, host_order)
        """To ask, mark and lift."""
        self.keeping = Keeping(self.tree, arena.extent_bytes)
        """To ask; its names are written by `Pins`."""
        self._departures: Departures | None = None
        self._changes: Changes | None = None
        self._pinned: set[int] = set()
        self.host_only_count = 0
        """Blocks in host memory that the SSD lacks: what a crash now would lose."""
        self.host_payload_bytes = 0
        self.ssd_payload_bytes = 0

    def __len__(self) -> int:
        return len(self.tree)

    # -- asking ------------------------------------------------------------------------------------

    def namespace_payload_bytes(self, namespace_id: NamespaceId) -> int | None:
        """Payload size of the blocks cached for a namespace; None when there are none."""
        return self.tree.namespaces.known_payload_bytes(namespace_id)

    @property
    def host_count(self) -> int:
        return len(self._host)

    @property
    def ssd_count(self) -> int:
        return len(self._ssd)

    def memory_bytes(self) -> int:
        """What the index takes for its blocks."""
        parts = (self.tree, self._host, self._ssd, self._departures, self.one_offs, self.owners)
        return sum(part.memory_bytes() for part in parts if part is not None)

    def admitted(self, row: int) -> bool:
        return bool(self.tree.columns.admitted[row])

    def used_again(self, row: int) -> bool:
        """True for a block in host memory that was used since it came there."""
        return self._host.uses(row) > 1

    # -- orders ------------------------------------------------------------------------------------

    def host_leaving(self, count: int) -> list[int]:
        """Up to `count` blocks that leave host memory next, were nothing stored or used meanwhile,
        in that order. Changes nothing."""
        first = dict.fromkeys(self.one_offs.leaving(count))
        if self.accounts is not None:
            first |= dict.fromkeys(self.accounts.leaving(count))
        others = (row for row in self._host.leaving(count) if row not in self.one_offs)
        return list(first | dict.fromkeys(others))[:count]

    def unused_seconds(self, row: int) -> float | None:
        """Since the block was stored or used last, to the second; None: not since the start."""
        second: int = self.tree.columns.use_second[row]
        return None if not second else float(max(0, self._second() - second))

    def ssd_standing(self, row: int) -> int:
        """Sort key of a block on the SSD, worst first."""
        return self._ssd.standing(row)

    def ssd_worth(self, row: int) -> int:
        return self._ssd.worth(row)

    def host_standing(self, row: int) -> int:
        """Sort key of a block in host memory, worst first."""
        return self._host.standing(row)

    def host_worths(self, rows: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """What keeping each in host memory is worth above the clock."""
        return self._host.worths(rows) - self._host.clock

    def above_line(self, row: int) -> bool:
        """True when a block on the SSD was used again and has not aged out since."""
        return self._ssd.above_line(row)

    def protected(self) -> set[int]:
        """Every held or withheld block and everything before one: what may not leave now."""
        held: set[int] = set()
        parents = self.tree.columns.parent
        for row in (*self._pinned, *self.keeping.withheld_rows):
            if self.tree.cached(row):
                while row != NOWHERE and row not in held:
                    held.add(row)
                    row = parents[row]
        return held

    def may_leave_host(self, row: int) -> bool:
        """True for a copy in host memory that may leave for room: rule 3."""
        columns = self.tree.columns
        return bool(
            columns.slab_page[row] != NOWHERE
            and columns.cached[row]
            and not columns.pins[row]
            and not columns.host_children[row]
            and not self.keeping.withheld(row)
            # The last copy stays while anything continues it.
            and (columns.segment[row] != NOWHERE or columns.first_child[row] == NOWHERE)
        )

    def _second(self) -> int:
        """Now, counted from 1 at the start."""
        return int(self._clock() - self._started) + 1

    def _parents(self, rows: "NDArray[np.int64]") -> "NDArray[np.int64]":
        parents: NDArray[np.int64] = self.tree.columns.array("parent")[rows].astype(np.int64)
        return parents

    # -- for tests ---------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Walks everything."""
        tree = self.tree
        tree.check_integrity()
        rows = list(tree)
        check_copies(tree, rows)
        assert len(self._host) == sum(tree.in_host(r) for r in rows)
        size = tree.payload_bytes
        assert self.host_payload_bytes == sum(size(r) for r in rows if tree.in_host(r))
        assert self.ssd_payload_bytes == sum(size(r) for r in rows if tree.on_ssd(r))
        assert self.host_only_count == sum(not tree.on_ssd(r) for r in rows)
        assert self._pinned >= {row for row in rows if tree.pins(row)}
        assert all(tree.pins(row) for row in self._pinned)
        for owner in (self.absences, self.segments, self._host, self._ssd, self.one_offs):
            owner.check_integrity()
        self.expiries.check_integrity()
        self.keeping.check_integrity()
        self.owners.check_integrity()
        if self._departures is not None:
            self._departures.check_integrity()
