"""BlockIndex: the single writer of "what is cached", in both tiers.

What it holds, and what can be asked of it, is in `index_queries.py`. A block is a row of the tree.
Other files of this room keep rows of blocks that they pinned, and read the tree; every change goes
through the methods here.

Invariants:
  1. Every block's parent is cached too, in some tier, or the block is the first of its chain.
  2. A block on the SSD has its parent on the SSD: descendants of a block leave the SSD with it.
  3. A copy leaves host memory for room only while no child has a copy there and nobody pins it.
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
    LEFT_HOST,
    LEFT_SSD,
    PROMOTED_HOST,
    STORED_HOST,
    Changes,
)
from cache_service.index_queries import IndexQueries
from cache_service.quotas import Quotas
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.tier import PAGE_BYTES, Slab, SsdLocation

if TYPE_CHECKING:
    from storage.ssd.recovered import RecoveredColumns

__all__ = ["BlockIndex", "HostCopy"]

USE_COUNT_MAX = 2**32 - 1
_VECTOR_MIN = 32
"""Fewer uses than this are counted one by one: NumPy calls cost more."""

HostCopy = tuple[int, Slab, int]
"""Row, slab and checksum of a block that came into host memory."""


class BlockIndex(IndexQueries):
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
        self._review(row)

    def move_ssd(self, row: int, location: SsdLocation) -> None:
        """The block's record was written again elsewhere. REQUIRES: it is on the SSD."""
        self.segments.take(row)
        self.segments.put(row, location)

    def admit(self, row: int, admitted: bool) -> None:
        """Notes what the rule of admission to the SSD said of a new block."""
        self.tree.columns.admitted[row] = admitted

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
            there = (columns.array("slab_page")[at] != NOWHERE) & (columns.array("cached")[at] != 0)
            self._host.refresh_many(at[there])
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

    # -- copies leave ------------------------------------------------------------------------------

    def host_victim(self) -> int | None:
        """The leaf that leaves host memory next; None when every leaf is held."""
        first = self.one_offs.first()
        if first is None and self.accounts is not None:
            first = self.accounts.first_over()
        return self._host.victim() if first is None else first

    def evict_host(self, row: int) -> Slab:
        """Gives away the slab of the leaf that leaves next, `host_victim()`, or of one that leaves
        for its own account's sake."""
        slab = self.tree.slab(row)
        if row in self.one_offs or (self.accounts is not None and row != self._host.victim()):
            self._host.remove(row)
        else:
            self._host.evict(row)
        self._give_up(row)
        return slab

    def evict_host_run(self, slab_bytes: int, count_max: int) -> list[Slab]:
        """Gives away slabs of leaves that leave next, as `evict_host` of one after the other would:
        at most so many. None when the next to leave is a one-off, or has slabs of another size."""
        if self.one_offs.first() is not None:
            return []
        if self.accounts is not None and self.accounts.first_over() is not None:
            return []
        rows = self._runs.leaving(slab_bytes, count_max)
        if not rows:
            return []
        at, columns = np.array(rows), self.tree.columns
        last_copies = at[columns.array("segment")[at] == NOWHERE]
        self.host_payload_bytes -= len(rows) * self.tree.payload_bytes(rows[0])
        self.host_only_count -= len(last_copies)
        if self.accounts is not None:
            for row in rows:
                self.accounts.left_host(row)
        self.owners.host_run_left(at)
        if self._departures is not None:
            for row in rows:
                self._departures.left(row)
        if self._changes is not None:
            self._changes.left_run(at, self._parents(at), LEFT_HOST, MissReason.EVICTED)
        before = columns.parent[rows[-1]]
        slabs = self._runs.leave(rows)
        if len(last_copies):
            # The first of the run: what is on the SSD has its parent there.
            hashes = list(Chain(self.tree.directory.words(last_copies).tobytes()))
            self.expiries.left(last_copies.tolist())
            self.owners.left(last_copies.tolist())
            self.unit_ends.leave(last_copies)
            self.tree.remove_run(last_copies)
            self.absences.remember_run(hashes, MissReason.EVICTED)
        if before != NOWHERE:
            self._review(before)
        return slabs

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

    def age_ssd(self, worth: int) -> None:
        """Blocks of this worth had to leave the SSD: its clock moves on."""
        self._ssd.advance(worth)

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

    def _review(self, row: int) -> None:
        """Offers or withholds a block as a victim in host memory: rule 3."""
        columns = self.tree.columns
        if columns.slab_page[row] == NOWHERE or not columns.cached[row]:
            return
        if not self.may_leave_host(row):
            self._host.withhold(row)
        else:
            self._host.offer(row)
            self.one_offs.offered(row)
            if self.accounts is not None:
                self.accounts.offered(row)
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
        if columns.owner[row]:
            if self.accounts is not None:
                self.accounts.left_host(row)
            self.owners.host_left(row)
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
        if columns.owner[row]:
            self.owners.ssd_left(row)
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
        self.expiries.left([row])
        if self.tree.columns.owner[row]:
            self.owners.left([row])
        self.unit_ends.leave_one(row)
        self.tree.remove(row)
        if parent != NOWHERE:
            self._review(parent)
        self.absences.remember(block_hash, reason)
