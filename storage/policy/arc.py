"""ARC-leaf: adaptive replacement over leaves (Megiddo and Modha, 2003).

Blocks used once and blocks used again are two queues, each least recently used first. `share` is
how many blocks the first may have before it gives the victim. Names of what left are remembered by
queue: one that comes back to the first says that `share` was too small, one that comes back to the
second that it was too large.

    worth(block) = turn of its last use
    clock        = latest turn that left to make room

As published but for two things: a queue without an offered block is passed over, and the capacity
that bounds `share` and the ghosts is the number of blocks present when one is evicted, since a tier
counts bytes. Ghosts: together, and the first queue's with its blocks, no more than blocks present.

20 bytes a slot, 48 for each offered one, 24 to 48 for a ghost.
"""

from array import array

import numpy as np

from storage.policy.columns import Column, view
from storage.policy.ghosts import Ghosts
from storage.policy.order import USES_MAX, Names, Slots
from storage.policy.slot_order import TURN_BITS, SlotOrder

__all__ = ["Arc"]

_ONCE, _AGAIN = 0, 1


class Arc(SlotOrder):
    """See `EvictionOrder`."""

    def __init__(self) -> None:
        self._names: Column = array("Q")
        super().__init__(self._names, queues=2)
        self._once_count = 0
        self._share = 0
        self._ghosts = (Ghosts(), Ghosts())

    def insert(self, slot: int, name: int, uses: int = 1) -> None:
        if self._came_back(name):
            uses = USES_MAX
        super().insert(slot, name, uses)
        self._names[slot] = name
        self._once_count += uses == 1

    def insert_many(self, slots: Slots, names: Names) -> None:
        super().insert_many(slots, names)
        view(self._names)[slots] = np.asarray(names, dtype=np.uint64)
        self._once_count += len(slots)

    def use(self, slot: int) -> None:
        self._once_count -= self._uses[slot] == 1
        super().use(slot)
        if self._offered[slot]:
            self._leaves[_AGAIN].push(slot)

    def victim(self) -> int | None:
        first = _ONCE if self._once_count > self._share else _AGAIN
        slot = self._leaves[first].first()
        return slot if slot is not None else self._leaves[1 - first].first()

    def leaving(self, count: int) -> list[int]:
        queues = [leaves.least(count)[::-1] for leaves in self._leaves]
        once_count = self._once_count
        slots: list[int] = []
        while len(slots) < count and any(queues):
            first = _ONCE if once_count > self._share else _AGAIN
            queue = first if queues[first] else 1 - first
            slots.append(queues[queue].pop())
            once_count -= queue == _ONCE
        return slots

    def evict(self, slot: int) -> None:
        queue, count_max = self._queue(slot), self._count
        super().evict(slot)
        once, again = self._ghosts
        self._ghosts[queue].add(self._names[slot])
        once.trim(count_max - self._once_count)
        again.trim(count_max - len(once))

    def remove(self, slot: int) -> None:
        self._once_count -= self._uses[slot] == 1
        super().remove(slot)

    def worth(self, slot: int) -> int:
        return self._turns[slot]

    def standing(self, slot: int) -> int:
        return (self._uses[slot] > 1) << TURN_BITS | self._turns[slot]

    def _queue(self, slot: int) -> int:
        return _ONCE if self._uses[slot] == 1 else _AGAIN

    def _came_back(self, name: int) -> bool:
        once, again = self._ghosts
        counts = max(1, len(once)), max(1, len(again))
        if once.discard(name):
            self._share = min(self._count + 1, self._share + max(1, counts[1] // counts[0]))
        elif again.discard(name):
            self._share = max(0, self._share - max(1, counts[0] // counts[1]))
        else:
            return False
        return True

    def memory_bytes(self) -> int:
        return super().memory_bytes() + sum(ghosts.memory_bytes() for ghosts in self._ghosts)

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self._once_count == sum(uses == 1 for uses in self._uses)
        assert self._share >= 0
        for ghosts in self._ghosts:
            ghosts.check_integrity()
