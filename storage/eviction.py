"""Eviction order: which block of a tier is worth least. Pure; trace replay runs the same code.

GreedyDual with a use count that stops at `USES_MAX`:

    worth(block) = clock at its last use + min(uses, USES_MAX)
    clock        = worth of the last block that left

A block that was used once goes after one "generation", a block that was used again stays two, and
nothing that was once popular stays for ever because the clock moves on. Plain LRU has no such
difference; uncapped counts (LFU) never forget. Among equals the longest unused goes first.

Invariants: a worth never falls while its block stays; every offered key has exactly one heap
entry, whose worth may lag behind (it is corrected when it surfaces). Only keys that the owner
offered can be victims: the owner offers the leaves, so that no block is stranded. Not thread-safe;
belongs to one owner.
"""

import heapq
from typing import Generic, TypeVar

__all__ = ["USES_MAX", "EvictionOrder"]

USES_MAX = 2

Key = TypeVar("Key")


class _Rank:
    """A key's standing. `queued` says whether the heap holds an entry for it."""

    __slots__ = ("offered", "queued", "turn", "uses", "worth")

    def __init__(self, worth: int, turn: int, uses: int) -> None:
        self.worth = worth
        self.turn = turn
        self.uses = uses
        self.offered = False
        self.queued = False


class EvictionOrder(Generic[Key]):
    """The order of one tier's blocks. `insert`, `use` and `victim` cost O(log n) at most."""

    def __init__(self) -> None:
        self._ranks: dict[Key, _Rank] = {}
        self._heap: list[tuple[int, int, Key, _Rank]] = []
        self._clock = 0
        self._turn = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: Key) -> bool:
        return key in self._ranks

    @property
    def clock(self) -> int:
        return self._clock

    def insert(self, key: Key, uses: int = 1) -> None:
        """Adds a key, not offered; `uses` is what another tier knows of it already.

        REQUIRES: the key is absent, `uses` is between 1 and `USES_MAX`.
        """
        assert key not in self._ranks
        self._turn += 1
        self._ranks[key] = _Rank(self._clock + uses, self._turn, uses)

    def use(self, key: Key) -> None:
        """Counts a use. REQUIRES: the key is present, here and below."""
        rank = self._ranks[key]
        if rank.uses < USES_MAX:
            rank.uses += 1
        self._refresh(rank)

    def refresh(self, key: Key) -> None:
        """Moves a key's last use to now without counting another."""
        self._refresh(self._ranks[key])

    def offer(self, key: Key) -> None:
        """The key may be a victim from now on."""
        rank = self._ranks[key]
        rank.offered = True
        if not rank.queued:
            self._push(key, rank)

    def withhold(self, key: Key) -> None:
        """The key may not be a victim until it is offered again."""
        self._ranks[key].offered = False

    def remove(self, key: Key) -> None:
        """Forgets a key that left for another reason than being the victim."""
        del self._ranks[key]
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._compact()

    def evict(self, key: Key) -> None:
        """Forgets a key that left to make room: the clock moves up to its worth."""
        self.advance(self._ranks[key].worth)
        self.remove(key)

    def advance(self, worth: int) -> None:
        """Moves the clock up to `worth`, for owners that make room for many keys at once."""
        self._clock = max(self._clock, worth)

    def victim(self) -> Key | None:
        """The offered key worth least, which stays in the order; None when none is offered."""
        heap = self._heap
        while heap:
            worth, turn, key, rank = heap[0]
            if not rank.offered or self._ranks.get(key) is not rank:
                heapq.heappop(heap)
                rank.queued = False
            elif (worth, turn) != (rank.worth, rank.turn):
                heapq.heapreplace(heap, (rank.worth, rank.turn, key, rank))
            else:
                return key
        return None

    def worth(self, key: Key) -> int:
        return self._ranks[key].worth

    def uses(self, key: Key) -> int:
        """Uses counted so far, at most `USES_MAX`."""
        return self._ranks[key].uses

    def standing(self, key: Key) -> tuple[int, int]:
        """Sort key, worst first: worth, then last use."""
        rank = self._ranks[key]
        return rank.worth, rank.turn

    def _refresh(self, rank: _Rank) -> None:
        self._turn += 1
        rank.turn = self._turn
        rank.worth = self._clock + rank.uses

    def _push(self, key: Key, rank: _Rank) -> None:
        rank.queued = True
        heapq.heappush(self._heap, (rank.worth, rank.turn, key, rank))

    def _compact(self) -> None:
        """Drops heap entries of keys that are gone, so that the heap is never twice the order."""
        kept = []
        for entry in self._heap:
            rank = entry[3]
            rank.queued = rank.offered and self._ranks.get(entry[2]) is rank
            if rank.queued:
                kept.append(entry)
        heapq.heapify(kept)
        self._heap = kept

    def check_integrity(self) -> None:
        """Every offered key is in the heap exactly once, no entry is ahead of its key."""
        queued: dict[int, int] = {}
        for worth, turn, key, rank in self._heap:
            queued[id(rank)] = queued.get(id(rank), 0) + 1
            assert (worth, turn) <= (rank.worth, rank.turn), key
            assert rank.queued
        for key, rank in self._ranks.items():
            assert queued.get(id(rank), 0) == (1 if rank.queued else 0), key
            assert rank.queued or not rank.offered, key
            assert 1 <= rank.uses <= USES_MAX
            assert rank.worth <= self._clock + USES_MAX, key
        assert len(self._heap) <= 2 * len(self._ranks) + 64 + 1
