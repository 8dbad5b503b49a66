"""Changes: copies of blocks that came or left, noted by row as it happens, resolved later.

Noting is two integers, so that a store hardly feels it; the hashes behind the rows are read a batch
at a time. Invariant: a row is resolved before it can be another block's (the index asks for that
before it adds one), so what is read is what was noted. Written by the index; event loop only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from kvtier.blocks import MissReason, Tier

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DEMOTED_SSD",
    "LEFT_HOST",
    "LEFT_SSD",
    "PROMOTED_HOST",
    "STORED_HOST",
    "Changes",
    "EventColumns",
    "EventKind",
    "block_facts",
    "event_code",
    "left_code",
    "read_code",
]

CODE_BITS = 12
_CODE_MASK = (1 << CODE_BITS) - 1
PENDING_MAX = 4096
"""Noted changes that an `add` may find; more are resolved first."""


class EventKind(IntEnum):
    """What happened to a copy; the numbers are those of `kvtier/v1/events.proto`."""

    STORED = 1
    PROMOTED = 2
    DEMOTED = 3
    EVICTED = 4


def event_code(kind: EventKind, tier: Tier) -> int:
    """All that an event says but its block and why it left, in `CODE_BITS` bits."""
    return kind | tier << 3


def left_code(tier_left: int, reason: MissReason) -> int:
    """Of a copy that left: `LEFT_HOST` or `LEFT_SSD`, and why."""
    return tier_left | reason << 6


def read_code(code: int) -> tuple[EventKind, Tier, MissReason]:
    return EventKind(code & 7), Tier(code >> 3 & 7), MissReason(code >> 6)


STORED_HOST = event_code(EventKind.STORED, Tier.HOST)
PROMOTED_HOST = event_code(EventKind.PROMOTED, Tier.HOST)
DEMOTED_SSD = event_code(EventKind.DEMOTED, Tier.SSD)
LEFT_HOST = event_code(EventKind.EVICTED, Tier.HOST)
LEFT_SSD = event_code(EventKind.EVICTED, Tier.SSD)


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Events by column, one place each. Hashes and namespaces are four words (n, 4)."""

    codes: "NDArray[np.uint16]"
    hashes: "NDArray[np.uint64]"
    parents: "NDArray[np.uint64]"
    """Zeros for the first block of a chain."""
    namespaces: "NDArray[np.uint64]"
    block_bytes: "NDArray[np.int64]"

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, start: int, end: int) -> "EventColumns":
        """Views, no copies."""
        return EventColumns(
            self.codes[start:end],
            self.hashes[start:end],
            self.parents[start:end],
            self.namespaces[start:end],
            self.block_bytes[start:end],
        )


class Changes:
    """What was noted since `settle`, which hands it to `sink` in order."""

    def __init__(self, tree: BlockTree, sink: Callable[[EventColumns], None]) -> None:
        self._tree = tree
        self._sink = sink
        self._noted: list[int] = []
        """Row and code."""
        self._parents: list[int] = []
        self._left = False
        """Whether a row that was noted may have been given away."""

    def __len__(self) -> int:
        return len(self._noted)

    def came(self, row: int, parent: int, code: int) -> None:
        """A copy came. `parent` is a row too, or NOWHERE."""
        self._noted.append(row << CODE_BITS | code)
        self._parents.append(parent)

    def left(self, row: int, parent: int, code: int) -> None:
        """A copy left. Noted before the row is."""
        self._noted.append(row << CODE_BITS | code)
        self._parents.append(parent)
        self._left = True

    def before_add(self) -> None:
        """A row is about to be given to a block."""
        if self._left or len(self._noted) > PENDING_MAX:
            self.settle()

    def settle(self) -> None:
        """Hands on what was noted."""
        if not self._noted:
            return
        noted = np.array(self._noted, np.int64)
        parents = np.array(self._parents, np.int64)
        self._noted, self._parents, self._left = [], [], False
        facts = block_facts(self._tree, noted >> CODE_BITS, parents)
        codes = (noted & _CODE_MASK).astype(np.uint16)
        self._sink(EventColumns(codes, *facts))


def block_facts(tree: BlockTree, rows: "NDArray[np.int64]", parents: "NDArray[np.int64]") -> Any:
    """Hashes, parents' hashes, namespaces and sizes of rows that are no other block's yet."""
    hashes = tree.directory.words(rows)
    parent_hashes = tree.directory.words(parents)
    parent_hashes[parents == NOWHERE] = 0
    kinds, kind_of = np.unique(tree.columns.array("kind")[rows], return_inverse=True)
    known = [tree.namespaces.kind(kind) for kind in kinds.tolist()]
    names = np.frombuffer(b"".join(name for name, _ in known), np.uint64).reshape(-1, 4)
    sizes = np.array([size for _, size in known], np.int64)
    return hashes, parent_hashes, names[kind_of], sizes[kind_of]
