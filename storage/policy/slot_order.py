"""SlotOrder: what every policy shares. Which slots are present and offered, uses, the last turn.

A turn is one step of the order's own time: each insert and each use takes one. A policy adds its
columns and says what a block's standing is; one with several queues says which a slot is in.
A standing falls only when its block leaves.
"""

from array import array
from collections.abc import Sequence
from functools import partial
from sys import getsizeof

import numpy as np

from storage.policy.columns import Column, grow, view
from storage.policy.leaf_heap import ABSENT, LeafHeap
from storage.policy.order import USES_MAX, Names, Slots

__all__ = ["TURN_BITS", "SlotOrder"]

TURN_BITS = 48
"""2**48 turns last nine years at a million a second."""


class SlotOrder:
    """Columns, clock and leaves of an order. See `EvictionOrder` for what the methods promise."""

    def __init__(self, *columns: Column, queues: int = 1) -> None:
        self._uses: Column = array("b")
        """0 where no block is."""
        self._offered: Column = array("b")
        self._turns: Column = array("q")
        self._columns = (self._uses, self._offered, self._turns, *columns)
        self._leaves = tuple(LeafHeap(partial(self._standing_in, i)) for i in range(queues))
        self._count = 0
        self._turn = 0
        self._clock = 0

    # -- what a policy says --------------------------------------------------------------------

    def standing(self, slot: int) -> int:
        raise NotImplementedError

    def worth(self, slot: int) -> int:
        raise NotImplementedError

    def _queue(self, slot: int) -> int:
        """Which of its queues a present slot is in."""
        return 0

    # -- what all do ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    def __contains__(self, slot: int) -> bool:
        return 0 <= slot < len(self._uses) and self._uses[slot] > 0

    def insert(self, slot: int, name: int, uses: int = 1) -> None:
        assert slot not in self
        assert 1 <= uses <= USES_MAX
        if slot >= len(self._uses):
            grow(self._columns, slot)
        self._uses[slot] = uses
        self._count += 1
        self.refresh(slot)

    def insert_many(self, slots: Slots, names: Names) -> None:
        if not len(slots):
            return
        grow(self._columns, int(slots.max()))
        assert not view(self._uses)[slots].any()
        view(self._uses)[slots] = 1
        view(self._turns)[slots] = np.arange(self._turn + 1, self._turn + 1 + len(slots))
        self._turn += len(slots)
        self._count += len(slots)

    def insert_run(self, slots: Slots, names: Names) -> None:
        for slot, name in zip(slots.tolist(), names.tolist(), strict=True):
            self.insert(slot, name)

    def use(self, slot: int) -> None:
        if self._uses[slot] < USES_MAX:
            self._uses[slot] += 1
        self.refresh(slot)

    def use_many(self, slots: Slots) -> None:
        for slot in slots.tolist():
            self.use(slot)

    def refresh(self, slot: int) -> None:
        self._turn += 1
        self._turns[slot] = self._turn

    def refresh_many(self, slots: Slots) -> None:
        for slot in slots.tolist():
            self.refresh(slot)

    def offer(self, slot: int) -> None:
        assert slot in self
        self._offered[slot] = 1
        self._leaves[self._queue(slot)].push(slot)

    def offer_many(self, slots: Slots) -> None:
        view(self._offered)[slots] = 1
        for leaves in self._leaves:
            leaves.push_many(slots)

    def withhold(self, slot: int) -> None:
        self._offered[slot] = 0

    def withhold_many(self, slots: Slots) -> None:
        view(self._offered)[slots] = 0

    def victim(self) -> int | None:
        return self._leaves[0].first()

    def leaving(self, count: int) -> list[int]:
        return self._leaves[0].least(count)

    def evict(self, slot: int) -> None:
        self.advance(self.worth(slot))
        self.remove(slot)

    def leaving_run(self, slots: Sequence[int]) -> int:
        return 1

    def evict_run(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.evict(slot)

    def remove(self, slot: int) -> None:
        assert slot in self
        self._uses[slot] = 0
        self._offered[slot] = 0
        self._count -= 1
        for leaves in self._leaves:
            leaves.forget(slot)

    def advance(self, worth: int) -> None:
        self._clock = max(self._clock, worth)

    @property
    def clock(self) -> int:
        return self._clock

    def uses(self, slot: int) -> int:
        return min(self._uses[slot], USES_MAX)

    def worths(self, slots: Slots) -> Slots:
        return np.fromiter(map(self.worth, slots.tolist()), np.int64, len(slots))

    def above_line(self, slot: int) -> bool:
        return self._uses[slot] > 1 and self.worth(slot) > self._clock

    def _standing_in(self, queue: int, slot: int) -> int:
        if self._offered[slot] and self._queue(slot) == queue:
            return self.standing(slot)
        return ABSENT

    def memory_bytes(self) -> int:
        columns = sum(getsizeof(column) for column in self._columns)
        return columns + sum(leaves.memory_bytes() for leaves in self._leaves)

    def check_integrity(self) -> None:
        present = {slot for slot, uses in enumerate(self._uses) if uses}
        offered = {slot for slot, offered in enumerate(self._offered) if offered}
        assert len(present) == self._count
        assert offered <= present
        assert len({self._turns[slot] for slot in present}) == self._count
        assert len({self.standing(slot) for slot in present}) == self._count
        assert all(0 < self._turns[slot] <= self._turn for slot in present)
        for queue, leaves in enumerate(self._leaves):
            leaves.check_integrity({slot for slot in offered if self._queue(slot) == queue})
