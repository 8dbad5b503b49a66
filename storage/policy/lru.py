"""LRU-leaf: of the offered blocks the one longest unused goes first.

    worth(block) = turn of its last use
    clock        = latest turn that left to make room

11 bytes a slot, and 48 for each offered one.
"""

from storage.policy.one_queue import OneQueue

__all__ = ["Lru"]


class Lru(OneQueue):
    """See `EvictionOrder`."""

    def worth(self, slot: int) -> int:
        return self._turns[slot]

    def standing(self, slot: int) -> int:
        return self._turns[slot]
