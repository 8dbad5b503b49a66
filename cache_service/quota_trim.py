"""What leaves the SSD at a start because its account may not have so much: a quota was lowered, or
a crash brought back blocks whose leaving was not durable.

Invariant: afterwards no account has more on the SSD than its hard quota. Before anything is served;
event loop or the thread that starts it.
"""

import heapq

import numpy as np

from cache_service.accounts import Account
from cache_service.block_tree import NOWHERE
from cache_service.index import BlockIndex
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash

__all__ = ["trim_ssd"]


def trim_ssd(index: BlockIndex) -> list[BlockHash]:
    """Takes out what is too much, least valuable leaves first; what the SSD has to forget."""
    forgotten: list[BlockHash] = []
    if index.accounts is not None:
        for account, owners in index.accounts.over_ssd_hard():
            forgotten += _trimmed(index, account, owners)
    return forgotten


def _trimmed(index: BlockIndex, account: Account, owners: list[int]) -> list[BlockHash]:
    tree, columns, high = index.tree, index.tree.columns, index.tree.directory.row_high
    mine = np.isin(columns.array("owner")[:high], np.array(owners, np.uint32))
    mine &= columns.array("segment")[:high] != NOWHERE
    rows: list[int] = np.flatnonzero(mine).tolist()
    leaves = [(index.ssd_standing(row), row) for row in rows if not columns.ssd_children[row]]
    heapq.heapify(leaves)
    forgotten: list[BlockHash] = []
    while leaves and account.over_ssd_hard:
        _, row = heapq.heappop(leaves)
        parent = tree.parent(row)
        forgotten += index.drop_ssd(row, MissReason.QUOTA)
        if parent != NOWHERE and mine[parent] and not columns.ssd_children[parent]:
            heapq.heappush(leaves, (index.ssd_standing(parent), parent))
    # Only where blocks on other accounts continue its own: those leave along.
    rest = sorted((index.ssd_standing(row), row) for row in rows if tree.on_ssd(row))
    for _, row in rest:
        if account.over_ssd_hard and tree.on_ssd(row):
            forgotten += index.drop_ssd(row, MissReason.QUOTA)
    return forgotten
