"""Snapshot: what is cached, a chunk of rows at a time. Reads the tree; event loop only.

A chunk is true at the moment it is read. Rows change hands between chunks; events say how, so a
chunk in its place between them is enough.
"""

from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.events.changes import block_facts
from cache_service.events.runs import BlockRun, spans
from kvtier.blocks import Tier

__all__ = ["blocks_from"]

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

_TIERS = {1: (Tier.HOST,), 2: (Tier.SSD,), 3: (Tier.HOST, Tier.SSD)}


def blocks_from(
    tree: BlockTree, first_row: int, row_count: int, run_count_max: int
) -> tuple[tuple[BlockRun, ...], int]:
    """The cached blocks of the rows from here, alike ones together, and the row after them.

    Of fewer rows where these hold too many kinds of block; of one at least.
    """
    while True:
        rows, likeness = _sorted(tree, first_row, first_row + row_count)
        bounds = list(spans(likeness[1:] == likeness[:-1])) if len(rows) else []
        if len(bounds) <= run_count_max:
            return _runs(tree, rows, likeness, bounds), first_row + row_count
        row_count //= 2


def _sorted(tree: BlockTree, first_row: int, end_row: int) -> "tuple[Rows, Rows]":
    """Rows of cached blocks by likeness, and that: namespace and size, tiers."""
    columns = tree.columns
    rows = first_row + np.flatnonzero(columns.array("cached")[first_row:end_row])
    places = (columns.array("slab_page")[rows] != NOWHERE).astype(np.int64)
    places += 2 * (columns.array("segment")[rows] != NOWHERE)
    # A block that was added and has no copy yet is not there: nobody sees the loop in between.
    assert places.all()
    kinds = columns.array("kind")[rows].astype(np.int64)
    likeness = kinds << 2 | places
    order = np.argsort(likeness, kind="stable")
    return rows[order], likeness[order]


def _runs(
    tree: BlockTree, rows: "Rows", likeness: "Rows", bounds: list[tuple[int, int]]
) -> tuple[BlockRun, ...]:
    if not bounds:
        return ()
    parents = tree.columns.array("parent")[rows].astype(np.int64)
    hashes, parent_hashes, namespaces, sizes = block_facts(tree, rows, parents)
    return tuple(
        BlockRun(
            _TIERS[int(likeness[start]) & 3],
            namespaces[start].tobytes(),
            int(sizes[start]),
            hashes[start:end].tobytes(),
            parent_hashes[start:end].tobytes(),
        )
        for start, end in bounds
    )
