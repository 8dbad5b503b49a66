"""OneQueue: an order whose leaves stand in one queue, and which remembers nothing of what left.

So a run of blocks, the next of which is offered when the one before it has left, leaves as far as
nobody else who is offered stands below one of them; and what is done to many can be done to their
columns at once.
"""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from storage.policy.columns import view
from storage.policy.order import Names, Slots
from storage.policy.slot_order import SlotOrder

__all__ = ["OneQueue"]


class OneQueue(SlotOrder):
    """What GreedyDual and LRU share beside `SlotOrder`."""

    def insert_run(self, slots: Slots, names: Names) -> None:
        self.insert_many(slots, names)

    def refresh_many(self, slots: Slots) -> None:
        view(self._turns)[slots] = np.arange(self._turn + 1, self._turn + 1 + len(slots))
        self._turn += len(slots)

    def leaving_run(self, slots: Sequence[int]) -> int:
        if len(slots) == 1:
            return 1
        (leaves,) = self._leaves
        others = leaves.runner_up()
        if others is None:
            return len(slots)
        standing = self.standing
        return 1 + sum(1 for _ in takewhile(lambda slot: standing(slot) < others, slots[1:]))

    def evict_run(self, slots: Sequence[int]) -> None:
        at = np.array(slots)
        self.advance(int(self.worths(at).max()))
        assert view(self._uses)[at].all()
        view(self._uses)[at] = 0
        view(self._offered)[at] = 0
        self._count -= len(slots)
        (leaves,) = self._leaves
        for slot in slots:
            leaves.forget(slot)
