"""LeafHeap: the offered slots of an order, least standing first, corrected when they surface.

An entry is one integer, the standing and the slot. A standing only rises while its block stays, so
an entry that lags behind is found at the top and moved; one that is of an earlier block in the same
slot, or of a block no longer offered, is dropped there.

Invariant: every offered slot has an entry that is not above its present standing.
"""

import heapq
from array import array
from collections.abc import Callable
from sys import getsizeof

from storage.policy.columns import Column, grow
from storage.policy.order import Slots

__all__ = ["ABSENT", "FOREIGN", "LeafHeap"]

ABSENT = -1
"""The standing of a slot that is not offered here."""

FOREIGN = -2
"""The same, of a slot that may stand on another heap with the same `queued` column."""

SLOT_BITS = 32
_SLOT_MASK = (1 << SLOT_BITS) - 1
_SLACK = 64
_LOOKS_PER_SLOT = 16


class LeafHeap:
    """`push` costs O(log n), `first` O(log n) for each entry that it finds outdated."""

    def __init__(self, standing: Callable[[int], int], queued: "Column | None" = None) -> None:
        """`standing` gives a slot's present standing, `ABSENT` when it is not offered here.

        `queued`: a column that several heaps share, where a slot is offered in one at a time; then
        `standing` says `FOREIGN` of a slot that is another's now: its entry here is of before, and
        what the column says of it is the other's to change.
        """
        self._standing = standing
        self._heap: list[int] = []
        self._queued: Column = array("b") if queued is None else queued
        self._count_max = _SLACK

    def __len__(self) -> int:
        """Entries, outdated ones too."""
        return len(self._heap)

    def push(self, slot: int) -> None:
        """REQUIRES: the slot is offered here. Does nothing when an entry serves already."""
        if slot >= len(self._queued):
            grow((self._queued,), slot)
        if self._queued[slot]:
            return
        self._queued[slot] = 1
        heapq.heappush(self._heap, self._standing(slot) << SLOT_BITS | slot)
        if len(self._heap) > self._count_max:
            self._rebuild(self._slots())

    def push_many(self, slots: Slots) -> None:
        """REQUIRES: they are offered here."""
        if len(slots):
            grow((self._queued,), int(slots.max()))
            self._rebuild(self._slots() | set(slots.tolist()))

    def forget(self, slot: int) -> None:
        """The block in `slot` left or another came: what the heap has of it serves no more."""
        if slot < len(self._queued):
            self._queued[slot] = 0
            if self._heap and self._heap[0] & _SLOT_MASK == slot:
                heapq.heappop(self._heap)

    def first(self) -> int | None:
        """The offered slot of least standing; None when there is none."""
        heap = self._heap
        while heap:
            entry = heap[0]
            slot = entry & _SLOT_MASK
            standing = self._standing(slot)
            if entry >> SLOT_BITS == standing:
                return slot
            if standing < 0:
                heapq.heappop(heap)
                if standing == ABSENT:
                    self._queued[slot] = 0
            elif entry >> SLOT_BITS > standing:
                heapq.heappop(heap)  # of the block that had the slot before
            else:
                heapq.heapreplace(heap, standing << SLOT_BITS | slot)
        return None

    def runner_up(self) -> int | None:
        """The second least standing of an offered slot; None when there is only one, or none.

        REQUIRES: `first` found one.
        """
        entry = heapq.heappop(self._heap)
        second = self.first()
        heapq.heappush(self._heap, entry)
        return None if second is None else self._standing(second)

    def least(self, count: int) -> list[int]:
        """Up to `count` offered slots, least standing first. Changes nothing.

        Looks at a bounded number of entries: fewer slots come back when most are outdated.
        """
        heap = self._heap
        frontier = [(heap[0], 0)] if heap else []
        """Entries to be looked at and their places; none is above those below it."""
        found: list[tuple[int, int]] = []
        seen: set[int] = set()
        least: list[int] = []
        left = _LOOKS_PER_SLOT * count + _SLACK
        while len(least) < count and (frontier or found):
            if found and (not frontier or found[0][0] <= frontier[0][0] >> SLOT_BITS):
                least.append(heapq.heappop(found)[1])
                continue
            entry, place = heapq.heappop(frontier)
            slot = entry & _SLOT_MASK
            standing = self._standing(slot)
            if standing >= 0 and slot not in seen:
                seen.add(slot)
                heapq.heappush(found, (standing, slot))
            if (left := left - 1) <= 0:
                frontier.clear()
                continue
            for below in (2 * place + 1, 2 * place + 2):
                if below < len(heap):
                    heapq.heappush(frontier, (heap[below], below))
        return least

    def _slots(self) -> set[int]:
        return {entry & _SLOT_MASK for entry in self._heap}

    def _rebuild(self, slots: set[int]) -> None:
        """One right entry for each offered slot of `slots`."""
        heap = []
        for slot in slots:
            standing = self._standing(slot)
            if standing != FOREIGN:
                self._queued[slot] = standing != ABSENT
            if standing >= 0:
                heap.append(standing << SLOT_BITS | slot)
        heapq.heapify(heap)
        self._heap = heap
        self._count_max = 2 * len(heap) + _SLACK

    def memory_bytes(self) -> int:
        entries = getsizeof(self._heap[0]) * len(self._heap) if self._heap else 0
        return getsizeof(self._heap) + entries + getsizeof(self._queued)

    def check_integrity(self, slots: set[int]) -> None:
        """`slots` are all that are offered here."""
        least: dict[int, int] = {}
        for entry in self._heap:
            slot = entry & _SLOT_MASK
            least[slot] = min(entry >> SLOT_BITS, least.get(slot, entry >> SLOT_BITS))
        for slot in slots:
            assert self._queued[slot], slot
            assert least[slot] <= self._standing(slot), slot
        assert len(self._heap) <= self._count_max
