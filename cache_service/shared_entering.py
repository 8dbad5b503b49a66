"""Entering: blocks that were read become cached, each whole and at once, behind the one before.

    a checked block -> may it? -> room on its account -> row, owner, end -> its copy -> the next

Room is made by letting leaves of the account leave, and a leaf is whatever nobody holds: so the
block that the next one continues is pinned here, and one that is there already is pinned before
room is claimed for its copy. Whatever is before them has a child in host memory, and is no leaf.

Invariants: a block enters with its copy behind a parent that is cached, or not at all; what was
claimed is given up on every path; a slab is the caller's until it is popped for a copy. Nothing
else runs in between. Event loop only.
"""

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.parts import Parts
from cache_service.session import Session
from cache_service.shared_room import Taken
from kvtier.blocks import MissReason
from storage.shared.extent import ExtentBlock

__all__ = ["Entering"]


class Entering:
    """The end of a chain that grows. `close` lets go of it."""

    def __init__(self, parts: Parts, session: Session, anchor: int) -> None:
        """`anchor`: the row that the first block to come continues, or NOWHERE."""
        self._parts = parts
        self._index = parts.index
        self._session = session
        self._epoch = parts.closing.epoch
        self.anchor = NOWHERE
        """The row that the next block continues, or NOWHERE; pinned."""
        self._new: list[int] = []
        self._move_to(anchor)

    @property
    def purged(self) -> bool:
        """Whether a purge runs, or ran since this began: what was read may be from before it."""
        return self._epoch is None or self._parts.closing.epoch != self._epoch

    def enter(self, block: ExtentBlock, taken: Taken) -> int | MissReason:
        """The row of the next block; or why it may not be, and then nothing changed.

        The next of `taken` holds its payload, and is used or given back. The row is pinned until
        the next one is.
        """
        reason = self._why_not(block)
        if reason is not None:
            return reason
        tree = self._index.tree
        row = tree.find(block.block_hash)
        if row == ABSENT:
            return self._enter_new(block, taken)
        kind = tree.namespaces.number(self._session.namespace_id, self._session.block_bytes)
        if tree.kind(row) != kind:
            return MissReason.OTHER_NAMESPACE
        if self._index.expiries.over(row):
            return MissReason.EXPIRED
        return self._enter_known(row, block, taken)

    def admit(self) -> None:
        """Offers what came to the SSD, as a commit does."""
        new, self._new = self._new, []
        if self._parts.writer is not None and new:
            self._parts.writer.committed(new)

    def close(self) -> None:
        """Idempotent."""
        self._move_to(NOWHERE)

    # -- one block ---------------------------------------------------------------------------------

    def _why_not(self, block: ExtentBlock) -> MissReason | None:
        if self.purged:
            return MissReason.PURGED
        if block.expire_second <= self._index.expiries.now():
            return MissReason.EXPIRED
        if self.anchor != NOWHERE and not self._index.tree.cached(self.anchor):
            return MissReason.EVICTED
        return None

    def _enter_new(self, block: ExtentBlock, taken: Taken) -> int | MissReason:
        index, session = self._index, self._session
        account = None if index.accounts is None else index.accounts.of_path(block.owner)
        with taken.room_on(account) as claimed:
            if not claimed:
                return MissReason.QUOTA
            self._lift([] if self.anchor == NOWHERE else [self.anchor])
            row = index.add(
                block.block_hash, self.anchor, session.namespace_id, session.block_bytes
            )
            self._move_to(row)
            index.owners.enter(row, block.owner)
            index.expiries.enter(row, block.expire_second)
            if block.unit_end:
                index.unit_ends.mark([row])
            with taken.pop() as slab:
                index.put_host(row, slab, block.checksum)
        self._new.append(row)
        return row

    def _enter_known(self, row: int, block: ExtentBlock, taken: Taken) -> int | MissReason:
        index = self._index
        if index.tree.in_host(row):
            self._move_to(row)
            self._lift([row])
            taken.drop()
            return row
        index.pin(row)
        try:
            account = None if index.accounts is None else index.accounts.of_row(row)
            with taken.room_on(account) as claimed:
                if not claimed:
                    return MissReason.QUOTA
                with taken.pop() as slab:
                    index.put_host(row, slab, block.checksum)
            self._move_to(row)
        finally:
            index.unpin(row)
        return row

    def _lift(self, rows: list[int]) -> None:
        """They, and all before them, are wanted by who does not call them one-off."""
        one_offs, tree = self._index.one_offs, self._index.tree
        if len(one_offs):
            before = [each for row in rows for each in (row, *tree.ancestors(row))]
            self._new += one_offs.lift(before[::-1])

    def _move_to(self, row: int) -> None:
        if row != NOWHERE:
            self._index.pin(row)
        if self.anchor != NOWHERE:
            self._index.unpin(self.anchor)
        self.anchor = row
