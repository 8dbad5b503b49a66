"""GreedyDual with a use count that stops at `USES_MAX`: the default.

    worth(block) = clock at its last use + 1 if it was used once, + 2 if it was used again
    clock        = greatest worth that left to make room

A block that was used once goes after one "generation", a block that was used again stays two, and
nothing that was once popular stays for ever because the clock moves on. Plain LRU has no such
difference; uncapped counts (LFU) never forget.

Among equals goes first what was used less, then what is longest unused. The first half matters: a
block used twice a generation ago is worth as much as one used once since, and is the better one to
keep. `docs/replay.md` has the numbers with and without it.

In a tier whose blocks are *backed* (what leaves it is kept below) losing a block costs a read and
not a computation. There a block used again stays an eighth of a generation longer, not a whole one:
what is not below yet stays longer for it, and less is written.

16 bytes a slot, and 48 for each offered one.
"""

from array import array

import numpy as np

from storage.policy.columns import Column, view
from storage.policy.one_queue import OneQueue
from storage.policy.order import USES_MAX, Names, Slots
from storage.policy.slot_order import TURN_BITS

__all__ = ["GreedyDual"]

_USES_BITS = 2
_WORTH_SHIFT = TURN_BITS + _USES_BITS


class GreedyDual(OneQueue):
    """See `EvictionOrder`."""

    def __init__(self, once: int = 1, again: int = 2) -> None:
        """What a use adds to the clock: the first one, and every later one."""
        assert 0 < once < again
        self._worths: Column = array("i")
        super().__init__(self._worths)
        self._values = (0, once, again)

    def insert_many(self, slots: Slots, names: Names) -> None:
        super().insert_many(slots, names)
        view(self._worths)[slots] = self._clock + self._values[1]

    def refresh(self, slot: int) -> None:
        self._turn += 1
        self._turns[slot] = self._turn
        self._worths[slot] = self._clock + self._values[self._uses[slot]]

    def refresh_many(self, slots: Slots) -> None:
        super().refresh_many(slots)
        view(self._worths)[slots] = self._clock + np.array(self._values)[view(self._uses)[slots]]

    def worth(self, slot: int) -> int:
        return self._worths[slot]

    def worths(self, slots: Slots) -> Slots:
        worths: Slots = view(self._worths)[slots].astype(np.int64)
        return worths

    def standing(self, slot: int) -> int:
        return (
            self._worths[slot] << _WORTH_SHIFT | self._uses[slot] << TURN_BITS | self._turns[slot]
        )

    def check_integrity(self) -> None:
        super().check_integrity()
        for slot, uses in enumerate(self._uses):
            assert uses <= USES_MAX
            assert not uses or self._worths[slot] <= self._clock + self._values[uses]
