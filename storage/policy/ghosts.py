"""Ghosts: a bounded memory of names, first in, first out, in 24 to 48 bytes a name.

A ring holds the names in the order in which they came; an open-addressed table finds a name's place
in the ring. A name is 64 bits of a SHA-256, so its low bits are hash enough. Whoever shares these
64 bits with another is mistaken for it, which may cost a block its place and never its content.

Invariant: the table holds exactly the names remembered, each with its latest place; a place of the
ring that no table entry names is a hole and is skipped when it comes to the front.
"""

from array import array
from collections.abc import Iterable, Iterator
from sys import getsizeof

from storage.policy.columns import Column

__all__ = ["Ghosts"]

SIZE_MIN = 16
TABLE_FACTOR = 2
"""The table is never more than half full, so a probe is short."""


class Ghosts:
    """`add`, `discard` and `in` cost O(1). Not thread-safe."""

    def __init__(self) -> None:
        self._count = 0
        self._fill(SIZE_MIN, ())

    def _fill(self, size: int, names: Iterable[int]) -> None:
        self._ring: Column = array("Q", bytes(8 * size))
        self._table: Column = array("q", bytes(8 * TABLE_FACTOR * size))
        self._head = self._tail = 0
        self._count = 0
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: int) -> bool:
        return self._table[self._find(name)] > 0

    def __iter__(self) -> Iterator[int]:
        """Names, the oldest first."""
        mask = len(self._ring) - 1
        for place in range(self._head, self._tail):
            name = self._ring[place & mask]
            if self._table[self._find(name)] == place + 1:
                yield name

    def add(self, name: int) -> None:
        """Remembers a name as the newest."""
        if self._tail - self._head == len(self._ring):
            self._make_room()
        at = self._find(name)
        self._count += not self._table[at]
        self._ring[self._tail & (len(self._ring) - 1)] = name
        self._tail += 1
        self._table[at] = self._tail

    def discard(self, name: int) -> bool:
        """Forgets a name; True when it was remembered."""
        at = self._find(name)
        if not self._table[at]:
            return False
        self._count -= 1
        self._close_gap(at)
        return True

    def trim(self, count_max: int) -> None:
        """Forgets the oldest until no more than `count_max` remain."""
        mask = len(self._ring) - 1
        while self._count > count_max:
            name = self._ring[self._head & mask]
            self._head += 1
            at = self._find(name)
            if self._table[at] == self._head:
                self._count -= 1
                self._close_gap(at)

    def _find(self, name: int) -> int:
        """Where in the table the name is, or the empty place where it would be."""
        table, ring = self._table, self._ring
        table_mask, ring_mask = len(table) - 1, len(ring) - 1
        at = name & table_mask
        while (place := table[at]) and ring[(place - 1) & ring_mask] != name:
            at = (at + 1) & table_mask
        return at

    def _close_gap(self, gap: int) -> None:
        """Empties a place. What was pushed past it by probing moves up: no search stops short."""
        table, ring = self._table, self._ring
        mask, ring_mask = len(table) - 1, len(ring) - 1
        at = (gap + 1) & mask
        while place := table[at]:
            home = ring[(place - 1) & ring_mask] & mask
            if (at - home) & mask >= (at - gap) & mask:
                table[gap] = place
                gap = at
            at = (at + 1) & mask
        table[gap] = 0

    def _make_room(self) -> None:
        """Drops the holes, and doubles when they were few."""
        names = list(self)
        size = len(self._ring)
        self._fill(2 * size if 2 * len(names) > size else size, names)

    def memory_bytes(self) -> int:
        return getsizeof(self._ring) + getsizeof(self._table)

    def check_integrity(self) -> None:
        names = list(self)
        assert len(names) == len(set(names)) == self._count
        assert sum(place > 0 for place in self._table) == self._count
        assert all(name in self for name in names)
        assert self._tail - self._head <= len(self._ring)
