"""BlockIndex: the single writer of "what is cached", in both tiers.

    tree       rows by hash, lineage, places        (block_tree.py: everybody reads it)
    orders     who leaves host memory, who the SSD  (storage/policy)
    segments   what lies in which segment           (segment_loads.py)
    departures who must be written before it leaves (departures.py: only when that is asked for)
    expiries   until when a block may be used       (expiries.py)
    one-offs   who is said not to be wanted again   (one_offs.py: they leave host memory first)
    changes    copies that came and left            (events/changes.py: only when somebody follows)

A block is a row of the tree. Other files of this room keep rows of blocks that they pinned, and
read the tree; every change goes through the methods here.

Invariants:
  1. Every block's parent is cached too, in some tier, or the block is the first of its chain.
  2. A block on the SSD has its parent on the SSD: descendants of a block leave the SSD with it.
  3. A copy leaves host memory for room only while no child has a copy there and nobody pins it.
  4. A pinned block's slab is never freed. A block that had to leave while pinned (corrupt, or an
     ancestor was) is invisible at once and keeps its slab until the last pin goes.
So no block is ever stranded: whoever finds a block finds every block before it.

Runs on the event loop only.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cache_service.absences import Absences
from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.departures import Departures
from cache_service.events.changes import (
    DEMOTED_SSD,
    LEFT_HOST,
    LEFT_SSD,
    PROMOTED_HOST,
    STORED_HOST,
    Changes,
)
from cache_service.expiries import Expiries
from cache_service.integrity import check_copies
from cache_service.one_offs import OneOffs
from cache_service.segment_loads import SegmentLoads
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.order import EvictionOrder
from storage.tier import PAGE_BYTES, Slab, SsdLocation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from storage.ssd.recovered import RecoveredColumns

__all__ = ["BlockIndex", "HostCopy"]

USE_COUNT_MAX = 2**32 - 1
_VECTOR_MIN = 32
"""Fewer uses than this are counted one by one: NumPy calls cost more."""

HostCopy = tuple[int, Slab, int]
"""Row, slab and checksum of a block that came into host memory."""


class BlockIndex:
    """Blocks by hash, the order in which they leave, and who holds them."""

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
        self.segments = SegmentLoads(self.tree, ssd_order)
        """For reading only."""
        self.expiries = Expiries(self.tree, wall)
        """To ask, enter and extend."""
        self.one_offs = OneOffs(self.tree, host_order)
        """To ask, mark and lift."""
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
        parts = (self.tree, self._host, self._ssd, self._departures, self.one_offs)
        return sum(part.memory_bytes() for part in parts if part is not None)

    def follow_departures(self) -> Departures:
        """From now on it is known what leaves next. REQUIRES: nothing is in host memory."""
        assert not self.host_count
        self._departures = Departures(self.tree, self._host)
        return self._departures

    def follow_changes(self, changes: Changes) -> None:
        """From now on every copy that comes or leaves is noted there."""
        self._changes = changes

    # -- copies come ---------------------------------------------------------------------------

    def recover(self, found: "RecoveredColumns") -> None:
        """Enters every block that opening the SSD tier found. REQUIRES: nothing was added yet."""
        self.tree.recover(found)
        self.expiries.recover(found)
        order = found.sequence.argsort(kind="stable")
        self._ssd.insert_many(order, self.tree.directory.names(order))
        self.segments.recover(found)
        self.ssd_payload_bytes = int(found.payload_bytes.sum())

    def add(
        self, block_hash: BlockHash, parent: int, namespace_id: NamespaceId, payload_bytes: int
    ) -> int:
        """Enters a block; its first copy must follow before the event loop is given away.

        REQUIRES: the hash is not cached; `parent` is, or is NOWHERE.
        """
        self.absences.forget(block_hash)
        if self._changes is not None and self._changes.rows_left:
            self._changes.settle()
        row = self.tree.add(block_hash, parent, namespace_id, payload_bytes)
        self.tree.columns.use_second[row] = self._second()
        return row

    def put_host(self, row: int, slab: Slab, checksum: int) -> None:
        """The block's payload is in `slab`, whole and immutable from now on.

        REQUIRES: cached, no copy in host memory.
        """
        self.put_host_many([(row, slab, checksum)])

    def put_host_many(self, copies: Sequence[HostCopy]) -> None:
        """The same for blocks of one chain, in its order."""
        for row, slab, checksum in copies:
            self._put_host(row, slab, checksum)
        # Looked at once all are in: what another one continues is not offered in between.
        parents = self.tree.columns.parent
        for row, _, _ in copies:
            if parents[row] != NOWHERE:
                self._review(parents[row])
            self._review(row)

    def _put_host(self, row: int, slab: Slab, checksum: int) -> None:
        tree, columns = self.tree, self.tree.columns
        assert columns.cached[row]
        assert columns.slab_page[row] == NOWHERE
        columns.slab_page[row] = slab.offset // PAGE_BYTES
        columns.host_checksum[row] = checksum
        self.host_payload_bytes += tree.payload_bytes(row)
        self.host_only_count += columns.segment[row] == NOWHERE
        uses = self._ssd.uses(row) if columns.segment[row] != NOWHERE else 1
        self._host.insert(row, tree.directory.name_of(row), uses)
        parent = columns.parent[row]
        if parent != NOWHERE:
            columns.host_children[parent] += 1
        if self._changes is not None:
            new = columns.segment[row] == NOWHERE
            self._changes.came(row, parent, STORED_HOST if new else PROMOTED_HOST)

    def put_ssd(self, row: int, location: SsdLocation) -> None:
        """The block's record is durable at `location`.

        REQUIRES: cached, not on the SSD, and its parent is.
        """
        tree, columns = self.tree, self.tree.columns
        parent = columns.parent[row]
        assert columns.cached[row]
        assert parent == NOWHERE or columns.segment[parent] != NOWHERE
        self.ssd_payload_bytes += location.payload_bytes
        uses = self._host.uses(row) if columns.slab_page[row] != NOWHERE else 1
        self.host_only_count -= columns.slab_page[row] != NOWHERE
        self._ssd.insert(row, tree.directory.name_of(row), uses)
        self.segments.put(row, location)
        if parent != NOWHERE:
            columns.ssd_children[parent] += 1
        if self._changes is not None:
            self._changes.came(row, parent, DEMOTED_SSD)
        self._review(row)

    def move_ssd(self, row: int, location: SsdLocation) -> None:
        """The block's record was written again elsewhere. REQUIRES: it is on the SSD."""
        self.segments.take(row)
        self.segments.put(row, location)

    def admit(self, row: int, admitted: bool) -> None:
        """Notes what the rule of admission to the SSD said of a new block."""
        self.tree.columns.admitted[row] = admitted

    def admitted(self, row: int) -> bool:
        return bool(self.tree.columns.admitted[row])

    def used_again(self, row: int) -> bool:
        """True for a block in host memory that was used since it came there."""
        return self._host.uses(row) > 1

    # -- use ---------------------------------------------------------------------------------------

    def use(self, rows: Iterable[int]) -> None:
        """Counts a use of each block in every tier that holds it."""
        columns, rows = self.tree.columns, list(rows)
        self._count_uses(rows)
        self.one_offs.lift(rows)
        for row in rows:
            if columns.cached[row]:
                if columns.slab_page[row] != NOWHERE:
                    self._host.use(row)
                    self._unsettle(row)
                if columns.segment[row] != NOWHERE:
                    self.segments.use(row)

    def refresh(self, rows: Iterable[int]) -> None:
        """Notes that the blocks are wanted now, without counting a use."""
        columns = self.tree.columns
        for row in rows:
            if columns.slab_page[row] != NOWHERE and columns.cached[row]:
                self._host.refresh(row)
                self._unsettle(row)

    def pin(self, row: int) -> None:
        """Holds a block: neither copy leaves for room. Ends with one `unpin`."""
        columns = self.tree.columns
        columns.pins[row] += 1
        if columns.pins[row] == 1:
            self._pinned.add(row)
            if columns.slab_page[row] != NOWHERE and columns.cached[row]:
                self._host.withhold(row)

    def unpin(self, row: int) -> None:
        columns = self.tree.columns
        assert columns.pins[row] > 0
        columns.pins[row] -= 1
        if columns.pins[row]:
            return
        self._pinned.discard(row)
        if columns.cached[row]:
            self._review(row)
            return
        self._free_slab(row)
        self.tree.let_go(row)

    # -- copies leave ------------------------------------------------------------------------------

    def host_victim(self) -> int | None:
        """The leaf that leaves host memory next; None when every leaf is held."""
        first = self.one_offs.first()
        return self._host.victim() if first is None else first

    def evict_host(self, row: int) -> Slab:
        """Gives away the slab of the leaf that leaves next, `host_victim()`."""
        slab = self.tree.slab(row)
        if row in self.one_offs:
            self._host.remove(row)
        else:
            self._host.evict(row)
        self._give_up(row)
        return slab

    def evict_host_rows(self, rows: Iterable[int]) -> int:
        """Frees the slabs of blocks that were chosen together; returns how many.

        The clock moves up to the leaf that is worth least, not to the dearest that leaves with it.
        REQUIRES: in host memory, not pinned, and each after everything that continues it there.
        """
        first = self._host.victim()
        line = self._host.worth(first) if first is not None else self._host.clock
        count = 0
        for row in rows:
            self._host.remove(row)
            self._arena.free(self.tree.slab(row))
            self._give_up(row)
            count += 1
        self._host.advance(line)
        return count

    def drop(self, row: int, reason: MissReason) -> list[BlockHash]:
        """Takes a block and everything after it out of every tier, pinned or not.

        What is after it has left as evicted, but when it expired: then that expired too. Returns
        the hashes whose SSD records are to be forgotten.
        """
        tree = self.tree
        forgotten = []
        below = reason if reason is MissReason.EXPIRED else MissReason.EVICTED
        for each in reversed(tree.subtree(row)):
            why = reason if each == row else below
            if tree.on_ssd(each):
                self._leave_ssd(each, why)
                forgotten.append(tree.block_hash(each))
            if tree.in_host(each):
                self._host.remove(each)
                self._leave_host(each, why)
                if not tree.pins(each):
                    self._free_slab(each)
            self._leave(each, why)
        return forgotten

    def drop_ssd(self, row: int, reason: MissReason) -> list[BlockHash]:
        """Takes a block and everything after it off the SSD; what is in host memory stays there.

        A block without another copy leaves the cache with all that follows it. Returns the hashes
        whose SSD records are to be forgotten.
        """
        tree = self.tree
        below = [each for each in tree.subtree(row) if tree.on_ssd(each)]
        forgotten = [tree.block_hash(each) for each in below]
        for each in reversed(below):
            self._leave_ssd(each, reason if each == row else MissReason.EVICTED)
        for each in reversed(below):
            # Last to first: what has no copy left takes with it only what follows it in memory,
            # and rows that are looked at later are still those of `below`.
            if not tree.in_host(each):
                left = self.drop(each, reason if each == row else MissReason.EVICTED)
                assert not left, "nothing below was on the SSD any more"
            else:
                self._review(each)
        return forgotten

    # -- orders ------------------------------------------------------------------------------------

    def host_leaving(self, count: int) -> list[int]:
        """Up to `count` blocks that leave host memory next, were nothing stored or used meanwhile,
        in that order. Changes nothing."""
        first = self.one_offs.leaving(count)
        return [*first, *(r for r in self._host.leaving(count) if r not in self.one_offs)][:count]

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

    def age_ssd(self, worth: int) -> None:
        """Blocks of this worth had to leave the SSD: its clock moves on."""
        self._ssd.advance(worth)

    def protected(self) -> set[int]:
        """Every pinned block and everything before one: what may not leave now."""
        held: set[int] = set()
        parents = self.tree.columns.parent
        for row in self._pinned:
            if self.tree.cached(row):
                while row != NOWHERE and row not in held:
                    held.add(row)
                    row = parents[row]
        return held

    # -- below -------------------------------------------------------------------------------------

    def _count_uses(self, rows: list[int]) -> None:
        """Notes when and how often; what is no longer cached has nothing to note, and is reset."""
        columns, second = self.tree.columns, self._second()
        if len(rows) < _VECTOR_MIN:
            for row in rows:
                columns.use_second[row] = second
                if columns.use_count[row] < USE_COUNT_MAX:
                    columns.use_count[row] += 1
            return
        at, counts = np.array(rows), columns.array("use_count")
        counts[at] += counts[at] < USE_COUNT_MAX
        columns.array("use_second")[at] = second

    def _second(self) -> int:
        """Now, counted from 1 at the start."""
        return int(self._clock() - self._started) + 1

    def _review(self, row: int) -> None:
        """Offers or withholds a block as a victim in host memory: rule 3."""
        columns = self.tree.columns
        if columns.slab_page[row] == NOWHERE or not columns.cached[row]:
            return
        last_copy = columns.segment[row] == NOWHERE
        if (
            columns.pins[row]
            or columns.host_children[row]
            or (last_copy and columns.first_child[row] != NOWHERE)
        ):
            self._host.withhold(row)
        else:
            self._host.offer(row)
            self.one_offs.offered(row)
            if self._departures is not None:
                self._departures.offered(row)

    def _unsettle(self, row: int) -> None:
        if self._departures is not None:
            self._departures.unsettle(row)

    def _free_slab(self, row: int) -> None:
        columns = self.tree.columns
        if columns.slab_page[row] != NOWHERE:
            self._arena.free(self.tree.slab(row))
            columns.slab_page[row] = NOWHERE

    def _give_up(self, row: int) -> None:
        """A copy leaves host memory for room, and its block the cache when it was the last.

        Its slab is another's already, or free.
        """
        self._leave_host(row, MissReason.EVICTED)
        columns = self.tree.columns
        columns.slab_page[row] = NOWHERE
        if columns.segment[row] == NOWHERE:
            self._leave(row, MissReason.EVICTED)
        elif columns.parent[row] != NOWHERE:
            self._review(columns.parent[row])

    def _leave_host(self, row: int, reason: MissReason) -> None:
        """The copy goes; whoever calls sees to its slab, and looks at the parent again."""
        columns = self.tree.columns
        self.host_payload_bytes -= self.tree.payload_bytes(row)
        self.host_only_count -= columns.segment[row] == NOWHERE
        if self._departures is not None:
            self._departures.left(row)
        self.one_offs.left(row)
        parent = columns.parent[row]
        if self._changes is not None:
            self._changes.left(row, parent, LEFT_HOST, reason)
        if parent != NOWHERE:
            columns.host_children[parent] -= 1

    def _leave_ssd(self, row: int, reason: MissReason) -> None:
        columns = self.tree.columns
        self.segments.take(row)
        self._ssd.remove(row)
        self.ssd_payload_bytes -= self.tree.payload_bytes(row)
        if columns.slab_page[row] != NOWHERE and columns.cached[row]:
            self.host_only_count += 1
            self._unsettle(row)
        parent = columns.parent[row]
        if self._changes is not None:
            self._changes.left(row, parent, LEFT_SSD, reason)
        if parent != NOWHERE:
            columns.ssd_children[parent] -= 1

    def _leave(self, row: int, reason: MissReason) -> None:
        block_hash, parent = self.tree.block_hash(row), self.tree.parent(row)
        self.expiries.left(row)
        self.tree.remove(row)
        if parent != NOWHERE:
            self._review(parent)
        self.absences.remember(block_hash, reason)

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
        for owner in (self.absences, self.segments, self._host, self._ssd):
            owner.check_integrity()
        self.expiries.check_integrity()
        self.one_offs.check_integrity()
        if self._departures is not None:
            self._departures.check_integrity()
