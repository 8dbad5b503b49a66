"""Snapshot: what is cached, a chunk of rows at a time. Reads the tree; event loop only.

A chunk is true at the moment it is read. Rows change hands between chunks; events say how, so a
chunk in its place between them is enough.
"""

import numpy as np

from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.events.changes import block_facts
from cache_service.events.runs import BlockRun, spans
from kvtier.blocks import Tier

__all__ = ["blocks_between"]

_TIERS = {1: (Tier.HOST,), 2: (Tier.SSD,), 3: (Tier.HOST, Tier.SSD)}


def blocks_between(tree: BlockTree, first_row: int, end_row: int) -> tuple[BlockRun, ...]:
    """The cached blocks in these rows, alike ones together."""
    columns = tree.columns
    rows = first_row + np.flatnonzero(columns.array("cached")[first_row:end_row])
    places = (columns.array("slab_page")[rows] != NOWHERE).astype(np.int64)
    places += 2 * (columns.array("segment")[rows] != NOWHERE)
    # A block that was added and has no copy yet is not there: nobody sees the loop in between.
    assert places.all()
    kinds = columns.array("kind")[rows].astype(np.int64)
    likeness = kinds << 2 | places
    order = np.argsort(likeness, kind="stable")
    rows, likeness = rows[order], likeness[order]
    if not len(rows):
        return ()
    parents = columns.array("parent")[rows].astype(np.int64)
    hashes, parent_hashes, namespaces, sizes = block_facts(tree, rows, parents)
    return tuple(
        BlockRun(
            _TIERS[int(likeness[start]) & 3],
            namespaces[start].tobytes(),
            int(sizes[start]),
            hashes[start:end].tobytes(),
            parent_hashes[start:end].tobytes(),
        )
        for start, end in spans(likeness[1:] == likeness[:-1])
    )
