"""IndexLeaving: copies and blocks leave the cache; the half of `BlockIndex` that takes away.

Its invariants are that class's, `index.py`. Event loop only.
"""

from collections.abc import Iterable

import numpy as np

from cache_service.accounts import Account
from cache_service.block_tree import NOWHERE
from cache_service.chains import Chain
from cache_service.events.changes import LEFT_HOST, LEFT_SSD
from cache_service.index_queries import IndexQueries
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.tier import Slab

__all__ = ["IndexLeaving"]


class IndexLeaving(IndexQueries):
    """Takes out: for room, because something is wrong, or because somebody says so."""

    # -- copies leave ------------------------------------------------------------------------------

    def host_victim(self, asker: Account | None = None) -> int | None:
        """The leaf that leaves host memory next; None when every leaf is held.

        `asker`: the account that it leaves for. None also when that is above its soft quota, and
        all that may leave are within those of others."""
        first = self.one_offs.first()
        if first is None and self.accounts is not None:
            if asker is not None and asker.over_host_soft:
                return self.accounts.first_for_borrower()
            first = self.accounts.first_over()
        return self._host.victim() if first is None else first

    def evict_host(self, row: int) -> Slab:
        """Gives away the slab of the leaf that leaves next, `host_victim`, or of one that leaves
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
        at most so many. None when the next to leave is a one-off, is borrowed, or has slabs of
        another size."""
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

    def droppable_run(self, leaf: int, top: int, count_max: int) -> list[int]:
        """A block that nothing continues, and what it continues as long as nothing else does, up to
        `top`: as far as `drop_run` takes them. REQUIRES: `top` is the leaf or before it."""
        columns, rows = self.tree.columns, list[int]()
        kind, row = columns.kind[leaf], leaf
        while (
            columns.slab_page[row] == NOWHERE
            and columns.segment[row] != NOWHERE
            and columns.kind[row] == kind
            and not columns.pins[row]
            and not columns.kept[row]
        ):
            rows.append(row)
            parent = columns.parent[row]
            if row == top or len(rows) == count_max:
                break
            if columns.first_child[parent] != row or columns.next_sibling[row] != NOWHERE:
                break
            row = parent
        return rows

    def drop_run(self, rows: list[int], reason: MissReason) -> list[BlockHash]:
        """As `drop` of one after the other, all for this reason, at a fraction of the cost.

        REQUIRES: `droppable_run` gave them just now.
        """
        at, columns = np.array(rows), self.tree.columns
        hashes = list(Chain(self.tree.directory.words(at).tobytes()))
        before = columns.parent[rows[-1]]
        for row in rows:
            self.segments.take(row)
            self._ssd.remove(row)
        self.ssd_payload_bytes -= len(rows) * self.tree.payload_bytes(rows[0])
        self.owners.ssd_run_left(at)
        if self._changes is not None:
            self._changes.left_run(at, self._parents(at), LEFT_SSD, reason)
        columns.array("ssd_children")[at] = 0
        if before != NOWHERE:
            columns.ssd_children[before] -= 1
        self.expiries.left(rows)
        self.owners.left(rows)
        self.unit_ends.leave(at)
        self.tree.remove_run(at)
        if before != NOWHERE:
            self._review(before)
        self.absences.remember_run(hashes, reason)
        return hashes

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
        if self.accounts is not None:
            self.accounts.left_host(row)
        if columns.owner[row]:
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
        self.keeping.look(row)
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
        self.keeping.look(row)
        if parent != NOWHERE:
            self._review(parent)
        self.absences.remember(block_hash, reason)
