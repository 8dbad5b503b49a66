"""Admission to the SSD by content: is a block worth a write? Pure, O(1) a block.

    all             every full block. Nothing that is hit is ever lost for want of a write.
    first_new       of a request's new blocks the first `new_max`, and whichever was seen before.
                    Long documents that nobody asks about again are most of the writes.

"Only when hit in memory" is not among them: it looks cheap and loses nearly half of the hits of
agents' traffic, whose contexts do not fit memory. `docs/replay.md` has the numbers.
"""

from typing import Protocol

from storage.policy.ghosts import Ghosts

__all__ = ["AdmissionRule", "AdmitAll", "AdmitFirstNew"]


class AdmissionRule(Protocol):
    """Asked once for each new block, in the order of the chain."""

    def admits(self, name: int, new_before: int) -> bool:
        """`name` is 64 bits of the block hash; `new_before` counts the request's new blocks
        before this one."""


class AdmitAll:
    """Every block."""

    def admits(self, name: int, new_before: int) -> bool:
        return True


class AdmitFirstNew:
    """The first `new_max` new blocks of a request, and those refused once before."""

    def __init__(self, new_max: int, seen_count_max: int) -> None:
        """`seen_count_max` bounds how many refused blocks are remembered."""
        self._new_max = new_max
        self._seen_count_max = seen_count_max
        self._seen = Ghosts()
        self.refused_blocks = 0
        self.lost_hits = 0
        """Refused blocks that were asked for again and were nowhere."""

    def admits(self, name: int, new_before: int) -> bool:
        seen = self._seen.discard(name)
        self.lost_hits += seen
        if seen or new_before < self._new_max:
            return True
        self.refused_blocks += 1
        self._seen.add(name)
        self._seen.trim(self._seen_count_max)
        return False
