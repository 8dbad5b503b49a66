"""The prefix tree as `kvtier cache tree` has it: listed nodes put together, with sums. Pure.

Invariant: a node whose parent was not listed (it left, or the listing began below it) stands at the
top, so every listed node is shown exactly once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cache_service.explanation import shares_data
from kvtier.blocks import Tier
from kvtier.v1 import explain_pb2 as pb

__all__ = ["Branch", "branch_data", "build", "find", "flat"]


@dataclass(slots=True, eq=False)
class Branch:
    """A node and what continues it. Sums are of all of that."""

    node: pb.TreeNode
    branches: "list[Branch]" = field(default_factory=list)
    block_count: int = 0
    copies_bytes: int = 0
    host_count: int = 0
    ssd_count: int = 0


def build(nodes: Iterable[pb.TreeNode]) -> list[Branch]:
    """The top of the tree; branches with the most bytes first."""
    made: dict[bytes, Branch] = {}
    listed: list[Branch] = []
    for node in nodes:
        branch = Branch(node)
        if made.setdefault(node.last_block_hash, branch) is branch:
            listed.append(branch)
    tops: list[Branch] = []
    for branch in listed:
        parent = made.get(branch.node.parent_block_hash)
        (tops if parent is None else parent.branches).append(branch)
    for branch in reversed(flat(tops)):  # last to first: what continues it is summed up
        _sum_up(branch)
    tops.sort(key=_weight)
    return tops


def flat(tops: Iterable[Branch]) -> list[Branch]:
    """Every branch, parents before children; without recursion, since chains are long."""
    found = list(tops)
    for branch in found:
        found.extend(branch.branches)
    return found


def find(tops: list[Branch], prefix: str) -> list[Branch]:
    """The branches whose first or last block's hash begins so (hexadecimal)."""
    return [
        branch
        for branch in flat(tops)
        if branch.node.block_hash.hex().startswith(prefix)
        or branch.node.last_block_hash.hex().startswith(prefix)
    ]


def branch_data(node: pb.TreeNode) -> dict[str, Any]:
    """A node for programs; units are in the names."""
    used = node.last_use_time.ToJsonString() if node.HasField("last_use_time") else None
    return {
        "block_hash": node.block_hash.hex(),
        "last_block_hash": node.last_block_hash.hex(),
        "parent_block_hash": node.parent_block_hash.hex(),
        "namespace_id": node.namespace_id.hex(),
        "block_bytes": node.block_bytes,
        "block_count": node.block_count,
        "shares": shares_data(node.shares),
        "hit_count": node.hit_count,
        "last_use_time": used,
        "pinned_count": node.pinned_count,
        "child_count": node.child_count,
        "host_leaving_rank": node.host_leaving_rank,
        "ssd_leaving_count": node.ssd_leaving_count,
        "owner": node.owner,
    }


def _sum_up(branch: Branch) -> None:
    """REQUIRES: what continues it was summed up."""
    node = branch.node
    branch.block_count = node.block_count
    for share in node.shares:
        branch.copies_bytes += share.payload_bytes
        tier = Tier(share.tier)
        if tier is Tier.HOST:
            branch.host_count += share.block_count
        elif tier is Tier.SSD:
            branch.ssd_count += share.block_count
    for below in branch.branches:
        branch.block_count += below.block_count
        branch.copies_bytes += below.copies_bytes
        branch.host_count += below.host_count
        branch.ssd_count += below.ssd_count
    branch.branches.sort(key=_weight)


def _weight(branch: Branch) -> tuple[int, bytes]:
    return -branch.copies_bytes, branch.node.block_hash
