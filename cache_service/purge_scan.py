"""PurgeScan: the rows that a purge's target names, a stretch at a time.

Invariant: a row is looked at again before anything is done about it, since between two stretches it
may have been given to another block. Changes nothing. Event loop only.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cache_service.block_tree import ABSENT
from cache_service.errors import RequestUnknownError, SessionUnknownError
from cache_service.owner_runs import OwnerRuns, within
from cache_service.parts import Parts
from cache_service.pin_views import Pin
from cache_service.purge_views import PurgeKind, PurgeTarget
from cache_service.session import Session
from kvtier.keys import BlockHash, NamespaceId

__all__ = ["PurgeScan"]

STRETCH_ROWS = 65_536
"""Looked at in one go, in NumPy: about 0.2 ms."""

Named = tuple[NamespaceId, BlockHash]


class PurgeScan:
    """What a target means in the index now."""

    def __init__(self, parts: Parts, target: PurgeTarget, acquired: bool) -> None:
        """`acquired`: an acquire of the target's request is remembered.

        Raises RequestUnknownError, SessionUnknownError.
        """
        self._tree = parts.index.tree
        self._owners = parts.index.owners
        self._target = target
        self._named: list[Named] = []
        self._stored_by = 0
        if target.kind is PurgeKind.PREFIX:
            assert target.namespace_id is not None
            assert target.block_hash is not None
            self._named = [(target.namespace_id, target.block_hash)]
        elif target.kind is PurgeKind.REQUEST:
            self._named = parts.stores.firsts(target.request_id)
            if not self._named and not acquired:
                raise RequestUnknownError(
                    "no store or acquire of that request is remembered: its id is another, it is"
                    " too long ago, or the service has started since; purge its prefix"
                )
        elif target.kind is PurgeKind.SESSION:
            number = parts.sessions.number(target.session_id)
            if number is None:
                raise SessionUnknownError(
                    "no such session is remembered: its id is another, it is too long ago, or the"
                    " service has started since"
                )
            self._stored_by = number

    def stretches(self) -> Iterator[list[int]]:
        """Rows that are named, all of them by the end; the caller may wait between two."""
        if self._by_name:
            yield [row for row in map(self._find, self._named) if row != ABSENT]
            return
        first = 0
        while first < self._tree.directory.row_high:
            yield self._stretch(first, first + STRETCH_ROWS)
            first += STRETCH_ROWS

    def names(self, row: int) -> bool:
        """Whether the block in the row now is one that the target names."""
        tree, kind = self._tree, self._target.kind
        if not tree.cached(row):
            return False
        if self._by_name:
            return (tree.namespace_id(row), tree.block_hash(row)) in self._named
        if kind is PurgeKind.NAMESPACE:
            return tree.namespace_id(row) == self._target.namespace_id
        if kind is PurgeKind.SESSION:
            return bool(tree.columns.stored_by[row] == self._stored_by)
        if kind is PurgeKind.OWNER:
            # By the path: a number may have been given to another owner meanwhile.
            return within(self._owners.of(row), self._target.owner)
        return True

    def names_of(self, pin: Pin) -> bool:
        """Whether the pin names a block that the target names."""
        kind = self._target.kind
        if kind is PurgeKind.NAMESPACE:
            return pin.namespace_id == self._target.namespace_id
        if kind is PurgeKind.EVERYTHING:
            return True
        rows = self._tree.find_chain(pin.chain)
        rows = rows[rows != ABSENT]
        if self._by_name:
            return bool(np.isin(rows, [self._find(named) for named in self._named]).any())
        if kind is PurgeKind.OWNER:
            owners = np.array(self._owners.numbers_within(self._target.owner), np.uint32)
            return bool(np.isin(self._tree.columns.array("owner")[rows], owners).any())
        return bool((self._tree.columns.array("stored_by")[rows] == self._stored_by).any())

    def covers(self, session: Session, rows: Sequence[int], owners: OwnerRuns) -> bool:
        """Whether a commit of the session, of a chain of these rows and owners, would add to
        what is named."""
        kind = self._target.kind
        if self._by_name:
            return not set(map(self._find, self._named)).difference([ABSENT]).isdisjoint(rows)
        if kind is PurgeKind.NAMESPACE:
            return session.namespace_id == self._target.namespace_id
        if kind is PurgeKind.SESSION:
            return session.number == self._stored_by
        if kind is PurgeKind.OWNER:
            return any(within(path, self._target.owner) for path in owners.paths)
        return True

    @property
    def _by_name(self) -> bool:
        return self._target.kind in (PurgeKind.PREFIX, PurgeKind.REQUEST)

    def _find(self, named: Named) -> int:
        namespace_id, block_hash = named
        row = self._tree.find(block_hash)
        if row == ABSENT or self._tree.namespace_id(row) != namespace_id:
            return ABSENT
        return row

    def _stretch(self, first: int, end: int) -> list[int]:
        columns = self._tree.columns
        wanted = columns.array("cached")[first:end] != 0
        if self._target.namespace_id is not None:
            numbers = self._tree.namespaces.numbers(self._target.namespace_id)
            wanted &= np.isin(columns.array("kind")[first:end], list(numbers))
        elif self._target.kind is PurgeKind.SESSION:
            wanted &= columns.array("stored_by")[first:end] == self._stored_by
        elif self._target.kind is PurgeKind.OWNER:
            owners = np.array(self._owners.numbers_within(self._target.owner), np.uint32)
            wanted &= np.isin(columns.array("owner")[first:end], owners)
        rows: list[int] = (np.flatnonzero(wanted) + first).tolist()
        return rows
