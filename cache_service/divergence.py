"""Where a chain leaves what is cached, and which cached chain goes on from there.

All chains that go on from the same block have as much in common with the one that misses; nearest
is the one used last, since that is whom a miss is asked about. Changes nothing; looks at a bounded
number of blocks. Event loop only.
"""

from itertools import islice

from cache_service.block_tree import NOWHERE, BlockTree
from cache_service.explain_views import CachedChainView, DivergenceView, TierShareView
from cache_service.index import BlockIndex
from kvtier.blocks import Tier

__all__ = ["divergence", "shares_of"]

BLOCKS_MAX = 4096
HASH_PREFIX_BYTES = 8


def divergence(index: BlockIndex, row: int, position: int) -> DivergenceView:
    """Of a chain whose last present block is `row`, NOWHERE for none, at `position` - 1."""
    tree = index.tree
    if row == NOWHERE:
        return DivergenceView(position, 0, None)
    count, nearest, best = 0, NOWHERE, (-1, -1)
    columns = tree.columns
    for child in tree.children(row):
        if index.expiries.over(child):
            continue  # perhaps the very block that is missed
        count += 1
        standing = (columns.use_second[child], columns.use_count[child])
        if standing > best:
            nearest, best = child, standing
        if count == BLOCKS_MAX:
            break
    if nearest == NOWHERE:
        return DivergenceView(position, 0, None)
    return DivergenceView(position, count, _chain(index, nearest))


def shares_of(tree: BlockTree, rows: list[int]) -> tuple[TierShareView, ...]:
    """Copies by tier, fast to slow; tiers without any are left out."""
    counts = {Tier.HOST: 0, Tier.SSD: 0}
    sizes = {Tier.HOST: 0, Tier.SSD: 0}
    for row in rows:
        size = tree.payload_bytes(row)
        for tier, there in ((Tier.HOST, tree.in_host(row)), (Tier.SSD, tree.on_ssd(row))):
            counts[tier] += there
            sizes[tier] += size * there
    return tuple(TierShareView(tier, n, sizes[tier]) for tier, n in counts.items() if n)


def _chain(index: BlockIndex, first: int) -> CachedChainView:
    """A block and what continues it, level by level."""
    tree = index.tree
    rows, level, depth, whole = [first], [first], 1, True
    while level and whole:
        room = BLOCKS_MAX - len(rows)
        below = list(islice((c for row in level for c in tree.children(row)), room + 1))
        whole = len(below) <= room
        level = below[:room]
        rows += level
        depth += bool(level)
    return CachedChainView(
        tree.block_hash(first)[:HASH_PREFIX_BYTES],
        depth,
        len(rows),
        shares_of(tree, rows),
        index.unused_seconds(first),
        whole,
    )
