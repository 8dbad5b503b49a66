"""BlockIndex: the single writer of "what is cached", in both tiers.

What it holds, and what can be asked of it, is in `index_queries.py`; how copies leave is in
`index_leaving.py`. A block is a row of the tree. Other files of this room keep rows of blocks that
they pinned, and read the tree; every change goes through the methods here.

Invariants:
  1. Every block's parent is cached too, in some tier, or the block is the first of its chain.
  2. A block on the SSD has its parent on the SSD: descendants of a block leave the SSD with it.
  3. A copy leaves host memory for room only while no child has a copy there, nobody pins it, and it
     is not withheld for a pin of an operator (`keeping.py`).
  4. A pinned block's slab is never freed. A block that had to leave while pinned (corrupt, or an
     ancestor was) is invisible at once and keeps its slab until the last pin goes.
So no block is ever stranded: whoever finds a block finds every block before it.

Runs on the event loop only.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cache_service.accounts import Accounts
from cache_service.block_tree import NOWHERE
from cache_service.chains import Chain
from cache_service.departures import Departures
from cache_service.events.changes import (
    DEMOTED_SSD,
    PROMOTED_HOST,
    STORED_HOST,
    Changes,
)
from cache_service.index_leaving import IndexLeaving
from cache_service.quotas import Quotas
from kvtier.keys import BlockHash, NamespaceId
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


class BlockIndex(IndexLeaving):
    """Blocks by hash, the order in which they leave, and who holds them."""

    # -- followers ---------------------------------------------------------------------------------

    def follow_departures(self) -> Departures:
        """From now on it is known what leaves next. REQUIRES: nothing is in host memory."""
        assert not self.host_count
        self._departures = Departures(self.tree, self._host)
        return self._departures

    def limit(self, quotas: Quotas) -> None:
        """From now on owners have quotas. REQUIRES: nothing is cached."""
        assert not len(self)
        self.accounts = Accounts(self.tree, self._host, quotas, self.may_leave_host)
        self.owners.accounts = self.accounts

    def follow_changes(self, changes: Changes) -> None:
        """From now on every copy that comes or leaves is noted there."""
        self._changes = changes

    # -- copies come ---------------------------------------------------------------------------

    def recover(self, found: "RecoveredColumns") -> None:
        """Enters every block that opening the SSD tier found. REQUIRES: nothing was added yet."""
        self.tree.recover(found)
        self.expiries.recover(found)
        self.owners.recover(found)
        self.unit_ends.recover(found)
        order = found.sequence.argsort(kind="stable")
        self._ssd.insert_many(order, self.tree.directory.names(order))
        self.segments.recover(found)
        self.ssd_payload_bytes = int(found.payload_bytes.sum())

    def add(
        self,
        block_hash: BlockHash,
        parent: int,
        namespace_id: NamespaceId,
        payload_bytes: int,
        stored_by: int = 0,
    ) -> int:
        """Enters a block; its first copy must follow before the event loop is given away.

        `stored_by`: the number of its session. REQUIRES: the hash is not cached; `parent` is, or is
        NOWHERE.
        """
        self.absences.forget(block_hash)
        if self._changes is not None and self._changes.rows_left:
            self._changes.settle()
        row = self.tree.add(block_hash, parent, namespace_id, payload_bytes)
        self.tree.columns.use_second[row] = self._second()
        self.tree.columns.stored_by[row] = stored_by
        self.keeping.entered(row)
        return row

    def add_run(
        self,
        chain: Chain,
        parent: int,
        namespace_id: NamespaceId,
        payload_bytes: int,
        stored_by: int,
        slabs: Sequence[Slab],
        checksums: Sequence[int],
    ) -> list[int]:
        """Enters consecutive blocks with their copies in host memory: `add`, then `put_host_many`.

        `parent`: of the first. `stored_by`: the number of their session. Returns their rows.
        REQUIRES: none of the hashes is cached.
        """
        self.absences.forget_run(chain)
        if self._changes is not None and self._changes.rows_left:
            self._changes.settle()
        rows = self.tree.add_run(chain.words, parent, namespace_id, payload_bytes)
        self.tree.columns.array("stored_by")[rows] = stored_by
        self._runs.enter(rows, parent, slabs, checksums, self._second())
        if self.keeping.names:
            for row in rows.tolist():
                self.keeping.entered(row)
                self.keeping.look(row)
        self.host_payload_bytes += len(rows) * payload_bytes
        self.host_only_count += len(rows)
        if self._changes is not None:
            self._changes.came_run(rows, self._parents(rows), STORED_HOST)
        if parent != NOWHERE:
            self._review(parent)
        self._review(int(rows[-1]))
        entered: list[int] = rows.tolist()
        return entered

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
        if columns.owner[row]:
            self.owners.host_came(row)
        uses = self._ssd.uses(row) if columns.segment[row] != NOWHERE else 1
        self._host.insert(row, tree.directory.name_of(row), uses)
        parent = columns.parent[row]
        if parent != NOWHERE:
            columns.host_children[parent] += 1
        if self._changes is not None:
            new = columns.segment[row] == NOWHERE
            self._changes.came(row, parent, STORED_HOST if new else PROMOTED_HOST)
        self.keeping.look(row)

    def put_ssd(self, row: int, location: SsdLocation) -> None:
        """The block's record is durable at `location`.

        REQUIRES: cached, not on the SSD, and its parent is.
        """
        tree, columns = self.tree, self.tree.columns
        parent = columns.parent[row]
        assert columns.cached[row]
        assert parent == NOWHERE or columns.segment[parent] != NOWHERE
        self.ssd_payload_bytes += location.payload_bytes
        if columns.owner[row]:
            self.owners.ssd_came(row)
        uses = self._host.uses(row) if columns.slab_page[row] != NOWHERE else 1
        self.host_only_count -= columns.slab_page[row] != NOWHERE
        self._ssd.insert(row, tree.directory.name_of(row), uses)
        self.segments.put(row, location)
        if parent != NOWHERE:
            columns.ssd_children[parent] += 1
        if self._changes is not None:
            self._changes.came(row, parent, DEMOTED_SSD)
        self.keeping.look(row)
        self._review(row)

    def move_ssd(self, row: int, location: SsdLocation) -> None:
        """The block's record was written again elsewhere. REQUIRES: it is on the SSD."""
        self.segments.take(row)
        self.segments.put(row, location)

    def admit(self, row: int, admitted: bool) -> None:
        """Notes what the rule of admission to the SSD said of a new block."""
        self.tree.columns.admitted[row] = admitted

    def keep(self, rows: "NDArray[np.int64]") -> None:
        """Pins name these blocks from now on, with all before them: they are no one-offs any more.
        REQUIRES: they are in `keeping.names`."""
        columns = self.tree.columns
        columns.array("kept")[rows] = 1
        self.one_offs.lift(rows.tolist())
        self._look_at_kept(rows)

    def let_leave(self, rows: "NDArray[np.int64]") -> None:
        """No pin names these blocks any more. REQUIRES: they are not in `keeping.names`."""
        self.tree.columns.array("kept")[rows] = 0
        self._look_at_kept(rows)

    def _look_at_kept(self, rows: "NDArray[np.int64]") -> None:
        columns = self.tree.columns
        in_host = columns.array("slab_page")[rows] != NOWHERE
        for row in rows[in_host & (columns.array("segment")[rows] == NOWHERE)].tolist():
            self.keeping.look(row)
        # The others are no victims anyway.
        for row in rows[in_host & (columns.array("host_children")[rows] == 0)].tolist():
            self._review(row)

    # -- use ---------------------------------------------------------------------------------------

    def use(self, rows: Iterable[int]) -> None:
        """Counts a use of each block in every tier that holds it."""
        columns, rows = self.tree.columns, list(rows)
        self._count_uses(rows)
        self.one_offs.lift(rows)
        if len(rows) >= _VECTOR_MIN and self._departures is None:
            at = np.array(rows)
            at = at[columns.array("cached")[at] != 0]
            self._host.use_many(at[columns.array("slab_page")[at] != NOWHERE])
            for row in at[columns.array("segment")[at] != NOWHERE].tolist():
                self.segments.use(row)
            return
        for row in rows:
            if columns.cached[row]:
                if columns.slab_page[row] != NOWHERE:
                    self._host.use(row)
                    self._unsettle(row)
                if columns.segment[row] != NOWHERE:
                    self.segments.use(row)

    def refresh(self, rows: Iterable[int]) -> None:
        """Notes that the blocks are wanted now, without counting a use."""
        columns, rows = self.tree.columns, list(rows)
        if len(rows) >= _VECTOR_MIN and self._departures is None:
            at = np.array(rows)
            self._host.refresh_many(at[self._there(at)])
            return
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

    def pin_run(self, rows: Sequence[int]) -> None:
        """As `pin` of each. REQUIRES: no row twice."""
        if len(rows) < _VECTOR_MIN:
            for row in rows:
                self.pin(row)
            return
        columns, at = self.tree.columns, np.array(rows)
        pins = columns.array("pins")
        pins[at] += 1
        first = at[pins[at] == 1]
        self._pinned.update(first.tolist())
        self._host.withhold_many(first[self._there(first)])

    def unpin_run(self, rows: Sequence[int]) -> None:
        """As `unpin` of each. REQUIRES: no row twice."""
        if len(rows) < _VECTOR_MIN:
            for row in rows:
                self.unpin(row)
            return
        columns, at = self.tree.columns, np.array(rows)
        pins = columns.array("pins")
        assert (pins[at] > 0).all()
        # A last pin is looked at by itself where it lets its block leave, or what is left of it.
        last = at[pins[at] == 1]
        there = self._there(last)
        stays = there & (columns.array("host_children")[last] != 0)
        pins[at[pins[at] > 1]] -= 1
        pins[last[stays]] = 0
        self._pinned.difference_update(last[stays].tolist())
        self._host.withhold_many(last[stays])
        for row in last[~stays].tolist():
            self.unpin(row)

    # -- below -------------------------------------------------------------------------------------

    def _there(self, at: "NDArray[np.int64]") -> "NDArray[np.bool_]":
        """Which of the rows are cached with a copy in host memory."""
        columns = self.tree.columns
        there: NDArray[np.bool_] = columns.array("slab_page")[at] != NOWHERE
        there &= columns.array("cached")[at] != 0
        return there

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
