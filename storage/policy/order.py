"""EvictionOrder: what every policy does for the owner of a tier.

A block is a *slot*, a small dense number that the owner gives it while it is in the tier; slots of
blocks that left are given again. A policy's state is a row of columns, never an object a block.

The owner keeps a tier free of stranded blocks by *offering* only leaves that nobody holds: only an
offered slot is ever a victim. An offer is good until it is withheld or the block leaves.

Not thread-safe; an order belongs to one owner.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["USES_MAX", "EvictionOrder", "Names", "Slots"]

USES_MAX = 2
"""Where counting stops: what was once popular must be able to leave."""

Slots = NDArray[np.int64]
Names = NDArray[np.uint64]


class EvictionOrder(Protocol):
    """The order in which one tier's blocks leave."""

    def __len__(self) -> int:
        """Blocks in the order."""

    def __contains__(self, slot: int) -> bool: ...

    def insert(self, slot: int, name: int, uses: int = 1) -> None:
        """Adds a block, not offered, used now.

        `name` is 64 bits of its block hash, by which a policy knows a block that comes back; `uses`
        is what another tier counted. REQUIRES: slot absent, `uses` from 1 to `USES_MAX`.
        """

    def insert_many(self, slots: Slots, names: Names) -> None:
        """The same for many, in the order of their last use, the longest unused first."""

    def insert_run(self, slots: Slots, names: Names) -> None:
        """As `insert` of one after the other, used once."""

    def use(self, slot: int) -> None:
        """Counts a use. REQUIRES: present, here and in all that follow."""

    def use_many(self, slots: Slots) -> None:
        """As `use` of one after the other. REQUIRES: different slots."""

    def refresh(self, slot: int) -> None:
        """Moves the last use to now without counting one."""

    def refresh_many(self, slots: Slots) -> None:
        """As `refresh` of one after the other. REQUIRES: different slots."""

    def offer(self, slot: int) -> None:
        """It may be a victim from now on."""

    def offer_many(self, slots: Slots) -> None:
        """The same for many."""

    def withhold(self, slot: int) -> None:
        """It may not be a victim until it is offered again."""

    def withhold_many(self, slots: Slots) -> None:
        """The same for many."""

    def victim(self) -> int | None:
        """The offered block worth least, which stays in the order; None when none is offered."""

    def leaving(self, count: int) -> list[int]:
        """Up to `count` blocks in the order in which they would be victims, were no block inserted,
        used, offered or withheld meanwhile. Changes nothing. Exact but for what `LeafHeap.least`
        leaves out, and for blocks that a policy would move from queue to queue."""

    def evict(self, slot: int) -> None:
        """The block left to make room: the policy learns from it."""

    def leaving_run(self, slots: Sequence[int]) -> int:
        """How many of `slots` would leave one right after the other, nothing else between them.

        The first is the `victim`; each other one is offered when the one before it has left. At
        least 1; fewer than there would be is a right answer. Changes nothing.
        """

    def evict_run(self, slots: Sequence[int]) -> None:
        """As `evict` of one after the other. REQUIRES: `leaving_run` counted them all."""

    def remove(self, slot: int) -> None:
        """The block left for another reason."""

    def advance(self, worth: int) -> None:
        """Blocks of this worth left together to make room, by `remove`: the clock moves up to it.

        For owners whose unit of space holds many blocks.
        """

    @property
    def clock(self) -> int:
        """The greatest worth that ever left to make room."""

    def worth(self, slot: int) -> int:
        """What keeping it is worth, on the clock's scale; changes only by `use` and `refresh`."""

    def worths(self, slots: Slots) -> Slots:
        """`worth` of many."""

    def uses(self, slot: int) -> int:
        """Uses counted so far, at most `USES_MAX`."""

    def standing(self, slot: int) -> int:
        """Sort key, worst first; unique among present blocks."""

    def above_line(self, slot: int) -> bool:
        """True when it was used again and has not aged out since: worth writing anew when the
        space it lies in is wanted."""

    def memory_bytes(self) -> int:
        """What the columns and lists take."""

    def check_integrity(self) -> None:
        """Walks everything; for tests."""
