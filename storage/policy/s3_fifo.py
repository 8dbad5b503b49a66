"""S3-FIFO-leaf: three first-in-first-out queues over leaves (Yang and others, 2023).

A new block enters the small queue, a tenth of the tier; one whose name is remembered enters the
main queue. From the small queue a block used twice more moves on to the main one, another leaves
and its name is remembered. From the main queue a block used since it came round goes round again,
another leaves. Uses do not move a block within its queue.

    worth(block) = clock at its last use + min(uses, 2), as under GreedyDual
    clock        = greatest worth that left to make room

As published but for two things: a queue without an offered block is passed over, and "a tenth" and
the bound of the ghosts are of the blocks present, since a tier counts bytes.

24 bytes a slot, 48 for each offered one, 24 to 48 for a ghost.
"""

from array import array

import numpy as np

from storage.policy.columns import Column, view
from storage.policy.ghosts import Ghosts
from storage.policy.order import USES_MAX, Names, Slots
from storage.policy.slot_order import TURN_BITS, SlotOrder

__all__ = ["S3Fifo"]

SMALL_DIVISOR = 10
USES_COUNTED_MAX = 4
"""The insertion and three uses after it: the two bits a block of the published form."""

_SMALL, _MAIN = 0, 1


class S3Fifo(SlotOrder):
    """See `EvictionOrder`."""

    def __init__(self) -> None:
        self._mains: Column = array("b")
        self._names: Column = array("Q")
        self._worths: Column = array("i")
        super().__init__(self._mains, self._names, self._worths, queues=2)
        self._small_count = 0
        self._ghosts = Ghosts()

    def insert(self, slot: int, name: int, uses: int = 1) -> None:
        super().insert(slot, name, uses)
        self._names[slot] = name
        self._worths[slot] = self._clock + uses
        self._mains[slot] = self._ghosts.discard(name)
        self._small_count += not self._mains[slot]
        self._turn += 1
        self._turns[slot] = self._turn

    def insert_many(self, slots: Slots, names: Names) -> None:
        super().insert_many(slots, names)
        view(self._names)[slots] = np.asarray(names, dtype=np.uint64)
        view(self._worths)[slots] = self._clock + 1
        view(self._mains)[slots] = 0
        self._small_count += len(slots)

    def use(self, slot: int) -> None:
        if self._uses[slot] < USES_COUNTED_MAX:
            self._uses[slot] += 1
        self.refresh(slot)

    def refresh(self, slot: int) -> None:
        self._worths[slot] = self._clock + self.uses(slot)

    def victim(self) -> int | None:
        """Moves on what its turn at the head of a queue moves on, then answers."""
        while True:
            small, main = self._leaves[_SMALL].first(), self._leaves[_MAIN].first()
            if small is None and main is None:
                return None
            small_is_full = self._small_count * SMALL_DIVISOR >= self._count
            if small is not None and (small_is_full or main is None):
                if self._uses[small] <= USES_MAX:
                    return small
                self._small_count -= 1
                self._come_round(small, uses=1)
            elif main is not None:
                if self._uses[main] == 1:
                    return main
                self._come_round(main, uses=self._uses[main] - 1)

    def leaving(self, count: int) -> list[int]:
        """As `victim` would answer; what it would move to the end of a queue is left out."""
        small, main = (leaves.least(count)[::-1] for leaves in self._leaves)
        small_count, present = self._small_count, self._count
        slots: list[int] = []
        while len(slots) < count and (small or main):
            from_small = small and (small_count * SMALL_DIVISOR >= present or not main)
            slot = small.pop() if from_small else main.pop()
            small_count -= bool(from_small)
            if self._uses[slot] <= (USES_MAX if from_small else 1):
                slots.append(slot)
                present -= 1
        return slots

    def _come_round(self, slot: int, uses: int) -> None:
        """The block goes to the end of the main queue."""
        self._uses[slot] = uses
        self._mains[slot] = 1
        self._turn += 1
        self._turns[slot] = self._turn
        self._leaves[_MAIN].push(slot)

    def evict(self, slot: int) -> None:
        if not self._mains[slot]:
            self._ghosts.add(self._names[slot])
        super().evict(slot)

    def remove(self, slot: int) -> None:
        self._small_count -= not self._mains[slot]
        super().remove(slot)
        self._ghosts.trim(self._count)

    def worth(self, slot: int) -> int:
        return self._worths[slot]

    def standing(self, slot: int) -> int:
        return self._mains[slot] << TURN_BITS | self._turns[slot]

    def _queue(self, slot: int) -> int:
        return self._mains[slot]

    def memory_bytes(self) -> int:
        return super().memory_bytes() + self._ghosts.memory_bytes()

    def check_integrity(self) -> None:
        super().check_integrity()
        present = [slot for slot, uses in enumerate(self._uses) if uses]
        assert self._small_count == sum(not self._mains[slot] for slot in present)
        assert all(1 <= self._uses[slot] <= USES_COUNTED_MAX for slot in present)
        assert all(self._worths[slot] <= self._clock + USES_MAX for slot in present)
        assert len(self._ghosts) <= self._count + 1
        self._ghosts.check_integrity()
