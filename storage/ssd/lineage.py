"""Who descends from whom: the order in which parents come before children, and who is stranded.

Works on integers and columns, so that a million blocks take well under a second. Pure functions,
any thread.
"""

import numpy as np
from numpy.typing import NDArray

from storage.tier import NO_PARENT

__all__ = ["STRANDED", "depths", "parent_positions", "parents_first"]

STRANDED = -1
_ROOT = -1
_ABSENT = -2


def parent_positions(
    hashes: list[bytes], parents: "np.ndarray[tuple[int], np.dtype[np.void]]"
) -> NDArray[np.int64]:
    """For each block the position of its parent: -1 for a first block, -2 when it is not there."""
    position = {block_hash: i for i, block_hash in enumerate(hashes)}
    position[NO_PARENT] = _ROOT
    raw = np.ascontiguousarray(parents).tobytes()
    at = position.get
    found = [at(raw[i : i + 32], _ABSENT) for i in range(0, len(raw), 32)]
    return np.array(found, np.int64)


def depths(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks above each one up to the root; `STRANDED` (-1) when the chain to it is not complete.

    Jumps: after k rounds every block knows its ancestor 2^k steps up, so a chain of n blocks takes
    log2(n) rounds over the columns. What points into a circle never arrives, and is stranded.
    """
    count = len(parent)
    # Two extra positions stand for "above the root" and "above nothing", and point to themselves.
    root, absent = count, count + 1
    ancestor: NDArray[np.int64] = np.append(parent, [root, absent])
    ancestor[ancestor == _ROOT] = root
    ancestor[ancestor == _ABSENT] = absent
    steps = np.ones(count + 2, np.int64)
    steps[root] = steps[absent] = 0
    for _ in range(max(count, 1).bit_length() + 1):
        if (ancestor >= count).all():
            break
        steps += steps[ancestor]
        ancestor = ancestor[ancestor]
    arrived: NDArray[np.bool_] = ancestor[:count] == root
    above: NDArray[np.int64] = steps[:count] - 1
    above[~arrived] = STRANDED
    return above


def parents_first(depth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the blocks that are not stranded, parents before children."""
    order: NDArray[np.int64] = np.argsort(depth, kind="stable")
    kept: NDArray[np.int64] = order[depth[order] != STRANDED]
    return kept
