"""GreedyDual with a use count that stops at `USES_MAX`: the default.

    worth(block) = clock at its last use + min(uses, USES_MAX)
    clock        = greatest worth that left to make room

A block that was used once goes after one "generation", a block that was used again stays two, and
nothing that was once popular stays for ever because the clock moves on. Plain LRU has no such
difference; uncapped counts (LFU) never forget. Among equals the longest unused goes first.

15 bytes a slot, and 48 for each offered one.
"""

from array import array
from sys import getsizeof

import numpy as np

from storage.policy.columns import Column, grow, view
from storage.policy.leaf_heap import ABSENT, LeafHeap
from storage.policy.order import USES_MAX, Names, Slots

__all__ = ["GreedyDual"]

TURN_BITS = 48
"""A turn a use: 2**48 of them last nine years at a million a second."""


class GreedyDual:
    """See `EvictionOrder`."""

    def __init__(self) -> None:
        self._uses: Column = array("b")
        """0 where no block is."""
        self._offered: Column = array("b")
        self._worths: Column = array("i")
        self._turns: Column = array("q")
        self._leaves = LeafHeap(self._offered_standing)
        self._count = 0
        self._clock = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, slot: int) -> bool:
        return 0 <= slot < len(self._uses) and self._uses[slot] > 0

    def insert(self, slot: int, name: int, uses: int = 1) -> None:
        assert slot not in self
        assert 1 <= uses <= USES_MAX
        if slot >= len(self._uses):
            grow((self._uses, self._offered, self._worths, self._turns), slot)
        self._uses[slot] = uses
        self._count += 1
        self.refresh(slot)

    def insert_many(self, slots: Slots, names: Names) -> None:
        if not len(slots):
            return
        grow((self._uses, self._offered, self._worths, self._turns), int(slots.max()))
        assert not view(self._uses)[slots].any()
        view(self._uses)[slots] = 1
        view(self._worths)[slots] = self._clock + 1
        view(self._turns)[slots] = np.arange(self._turn + 1, self._turn + 1 + len(slots))
        self._turn += len(slots)
        self._count += len(slots)

    def use(self, slot: int) -> None:
        if self._uses[slot] < USES_MAX:
            self._uses[slot] += 1
        self.refresh(slot)

    def refresh(self, slot: int) -> None:
        self._turn += 1
        self._turns[slot] = self._turn
        self._worths[slot] = self._clock + self._uses[slot]

    def offer(self, slot: int) -> None:
        assert slot in self
        self._offered[slot] = 1
        self._leaves.push(slot)

    def offer_many(self, slots: Slots) -> None:
        view(self._offered)[slots] = 1
        self._leaves.push_many(slots)

    def withhold(self, slot: int) -> None:
        self._offered[slot] = 0

    def victim(self) -> int | None:
        return self._leaves.first()

    def evict(self, slot: int) -> None:
        self.advance(self._worths[slot])
        self.remove(slot)

    def remove(self, slot: int) -> None:
        assert slot in self
        self._uses[slot] = 0
        self._offered[slot] = 0
        self._count -= 1
        self._leaves.forget(slot)

    def advance(self, worth: int) -> None:
        self._clock = max(self._clock, worth)

    @property
    def clock(self) -> int:
        return self._clock

    def worth(self, slot: int) -> int:
        return self._worths[slot]

    def uses(self, slot: int) -> int:
        return self._uses[slot]

    def standing(self, slot: int) -> int:
        return self._worths[slot] << TURN_BITS | self._turns[slot]

    def above_line(self, slot: int) -> bool:
        return self._uses[slot] > 1 and self._worths[slot] > self._clock

    def _offered_standing(self, slot: int) -> int:
        if self._offered[slot]:
            return self._worths[slot] << TURN_BITS | self._turns[slot]
        return ABSENT

    def memory_bytes(self) -> int:
        columns = (self._uses, self._offered, self._worths, self._turns)
        return sum(getsizeof(column) for column in columns) + self._leaves.memory_bytes()

    def check_integrity(self) -> None:
        present = {slot for slot, uses in enumerate(self._uses) if uses}
        offered = {slot for slot, offered in enumerate(self._offered) if offered}
        assert len(present) == self._count
        assert offered <= present
        assert len({self._turns[slot] for slot in present}) == self._count
        for slot in present:
            assert 1 <= self._uses[slot] <= USES_MAX
            assert self._worths[slot] <= self._clock + USES_MAX
        self._leaves.check_integrity(offered)
