"""Changes: copies of blocks that came or left, noted by row as it happens, resolved later.

Noting is two integers, so that a store hardly feels it; the hashes behind the rows are read a batch
at a time. Invariant: a row is resolved before it can be another block's (the index asks for that
before it adds one), so what is read is what was noted. Written by the index; event loop only.
"""

from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from kvtier.blocks import MissReason, Tier
from storage.tier import NO_PARENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CODE_BITS",
    "DEMOTED_SSD",
    "LEFT_HOST",
    "LEFT_SSD",
    "PROMOTED_HOST",
    "REASON_SHIFT",
    "STORED_HOST",
    "Changes",
    "EventColumns",
    "EventKind",
    "EventSink",
    "block_facts",
    "event_code",
    "read_code",
]

CODE_BITS = 12
_CODE_MASK = (1 << CODE_BITS) - 1
REASON_SHIFT = 6
_RESOLVED_AT_ONCE = 65_536
"""A bound on the memory it takes, where a large part of the cache goes at once."""
_VECTOR_MIN = 24
"""Fewer changes than this are resolved one by one: NumPy calls cost more."""


class EventKind(IntEnum):
    """What happened to a copy; the numbers are those of `kvtier/v1/events.proto`."""

    STORED = 1
    PROMOTED = 2
    DEMOTED = 3
    EVICTED = 4


def event_code(kind: EventKind, tier: Tier) -> int:
    """All that an event says but its block and why it left, in `CODE_BITS` bits."""
    return kind | tier << 3


def read_code(code: int) -> tuple[EventKind, Tier, MissReason]:
    return EventKind(code & 7), Tier(code >> 3 & 7), MissReason(code >> REASON_SHIFT)


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


class EventSink(Protocol):
    """Takes events in order, many or one."""

    def append(self, events: EventColumns) -> None: ...

    def append_one(
        self, code: int, block_hash: bytes, parent: bytes, namespace_id: bytes, block_bytes: int
    ) -> None: ...


class Changes:
    """What was noted since `settle`, which hands it to `sink` in order."""

    def __init__(self, tree: BlockTree, sink: EventSink) -> None:
        self._tree = tree
        self._sink = sink
        self._noted, self._parents = array("q"), array("q")
        """Row and code of each change; row of the block before it."""
        self.rows_left = False
        """True when rows that were noted may be given away: `settle` before a row is."""

    def __len__(self) -> int:
        return len(self._noted)

    def came(self, row: int, parent: int, code: int) -> None:
        """A copy came. `parent` is a row too, or NOWHERE."""
        self._noted.append(row << CODE_BITS | code)
        self._parents.append(parent)

    def came_run(self, rows: "NDArray[np.int64]", parents: "NDArray[np.int64]", code: int) -> None:
        """As `came` of one after the other."""
        self._noted.frombytes((rows << CODE_BITS | code).tobytes())
        self._parents.frombytes(parents.tobytes())

    def left_run(
        self, rows: "NDArray[np.int64]", parents: "NDArray[np.int64]", code: int, reason: int
    ) -> None:
        """As `left` of one after the other."""
        self.came_run(rows, parents, reason << REASON_SHIFT | code)
        self.rows_left = True

    def left(self, row: int, parent: int, code: int, reason: int) -> None:
        """A copy left, for a `MissReason`. Noted before the row is given away."""
        self._noted.append(row << CODE_BITS | reason << REASON_SHIFT | code)
        self._parents.append(parent)
        self.rows_left = True

    def settle(self) -> None:
        """Hands on what was noted."""
        if not self._noted:
            return
        noted, parents, self.rows_left = self._noted, self._parents, False
        self._noted, self._parents = array("q"), array("q")
        if len(noted) < _VECTOR_MIN:
            for each, parent in zip(noted, parents, strict=True):
                self._sink.append_one(each & _CODE_MASK, *self._facts(each >> CODE_BITS, parent))
            return
        for start in range(0, len(noted), _RESOLVED_AT_ONCE):
            packed = np.frombuffer(noted, np.int64)[start : start + _RESOLVED_AT_ONCE]
            before = np.frombuffer(parents, np.int64)[start : start + _RESOLVED_AT_ONCE]
            facts = block_facts(self._tree, packed >> CODE_BITS, before)
            self._sink.append(EventColumns((packed & _CODE_MASK).astype(np.uint16), *facts))

    def _facts(self, row: int, parent: int) -> tuple[bytes, bytes, bytes, int]:
        """As `block_facts`, of one row."""
        hash_of = self._tree.directory.hash_of
        namespace_id, size = self._tree.namespaces.kind(self._tree.columns.kind[row])
        before = NO_PARENT if parent == NOWHERE else hash_of(parent)
        return hash_of(row), before, namespace_id, size


def block_facts(tree: BlockTree, rows: "NDArray[np.int64]", parents: "NDArray[np.int64]") -> Any:
    """Hashes, parents' hashes, namespaces and sizes of rows that are no other block's yet."""
    hashes = tree.directory.words(rows)
    parent_hashes = tree.directory.words(parents)
    parent_hashes[parents == NOWHERE] = 0
    of_rows = tree.columns.array("kind")[rows]
    if (of_rows == of_rows[0]).all():
        kinds, kind_of = of_rows[:1], np.zeros(len(rows), np.int64)
    else:
        kinds, kind_of = np.unique(of_rows, return_inverse=True)
    known = [tree.namespaces.kind(kind) for kind in kinds.tolist()]
    names = np.frombuffer(b"".join(name for name, _ in known), np.uint64).reshape(-1, 4)
    sizes = np.array([size for _, size in known], np.int64)
    return hashes, parent_hashes, names[kind_of], sizes[kind_of]
