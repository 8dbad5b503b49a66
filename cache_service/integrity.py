"""What must hold between the owners of the core: every pin and every slab has exactly one reason,
every copy has what it hangs on.

For tests; walks everything. Pure.
"""

from collections.abc import Mapping, Sequence

from cache_service.block_tree import NOWHERE, BlockTree
from storage.tier import Slab

__all__ = ["check_copies", "check_holders"]


def check_copies(tree: BlockTree, rows: Sequence[int]) -> None:
    """`rows`: every cached block."""
    for row in rows:
        assert tree.in_host(row) or tree.on_ssd(row), "cached nowhere"
        parent = tree.parent(row)
        assert parent == NOWHERE or not tree.on_ssd(row) or tree.on_ssd(parent), "stranded"
        children = list(tree.children(row))
        assert tree.columns.host_children[row] == sum(tree.in_host(c) for c in children)
        assert tree.columns.ssd_children[row] == sum(tree.on_ssd(c) for c in children)


def check_holders(
    tree: BlockTree,
    holders: Sequence[Mapping[int, int]],
    reserved: Sequence[Slab],
    slab_count: int,
    loading_count: int,
) -> None:
    """`holders`: who pins which row how often; `reserved`: slabs that the index does not know of;
    `loading_count`: loads that may hold one slab more each."""
    held = set(tree).union(*holders)
    for row in held:
        pins = sum(holder.get(row, 0) for holder in holders)
        assert tree.pins(row) == pins, (tree.block_hash(row).hex(), tree.pins(row), pins)
    slabs = [*(tree.slab(row) for row in held if tree.in_host(row)), *reserved]
    assert len({slab.offset for slab in slabs}) == len(slabs), "a slab has two owners"
    assert len(slabs) <= slab_count <= len(slabs) + loading_count, "a slab leaked"
