"""`kvtier cache tree` for people: a line a node, guides before it, figures in columns. Pure.

Bounded by depth, by branches shown of one node, and by lines; what is left out is summed up in the
line that stands for it.
"""

from collections.abc import Sequence

from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cache_service.explain_text import ago
from cache_service.tree_view import Branch
from kvtier.v1 import explain_pb2 as pb

__all__ = ["LEGEND", "tree_table"]

HASH_HEX_CHARS = 10

LEGEND = (
    "blocks: of the run. bytes, host, SSD: copies, with everything below. leaves: #1 leaves host"
    " memory next, #2 after it; SSD n: so many copies leave the SSD when their segment is recycled;"
    " held: in use now. owner: of the run; nobody's, public ones too, have none."
)


class _Lines:
    """The table while it grows."""

    def __init__(self, depth_max: int, branches_max: int, lines_max: int, now: float) -> None:
        self.depth_max = depth_max
        self.branches_max = branches_max
        self.lines_left = lines_max
        self.now = now
        self.table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        self.table.add_column("prefix", no_wrap=True)
        for name in ("blocks", "bytes", "host", "SSD", "hits"):
            self.table.add_column(name, justify="right", no_wrap=True)
        for name in ("used", "leaves"):
            self.table.add_column(name, no_wrap=True)
        # Paths may be long: on a narrow screen they fold, and no figure is cut for them.
        self.table.add_column("owner", overflow="fold")

    def add(self, branches: Sequence[Branch], guides: str, depth: int) -> None:
        """Branches of one node."""
        shown = branches[: self.branches_max] if depth < self.depth_max else []
        for place, branch in enumerate(shown):
            if self.lines_left <= 0:
                shown = branches[:place]
                break
            self.lines_left -= 1
            last = place == len(branches) - 1
            mark = "" if not depth else ("└─ " if last else "├─ ")
            self._line(branch, f"{guides}{mark}")
            below = guides if not depth else guides + ("   " if last else "│  ")
            self.add(branch.branches, below, depth + 1)
        self._left_out(branches[len(shown) :], f"{guides}{'└─ ' if depth else ''}")

    def _line(self, branch: Branch, guides: str) -> None:
        node = branch.node
        self.table.add_row(
            f"{guides}{node.block_hash.hex()[:HASH_HEX_CHARS]}",
            f"{node.block_count:,}",
            f"{decimal(branch.copies_bytes)}",
            _of(branch.host_count, branch.block_count),
            _of(branch.ssd_count, branch.block_count),
            f"{node.hit_count:,}",
            ago(node.last_use_time, self.now) if node.HasField("last_use_time") else "-",
            _leaves(node),
            escape(node.owner),
        )

    def _left_out(self, branches: Sequence[Branch], guides: str) -> None:
        if not branches:
            return
        blocks = sum(branch.block_count for branch in branches)
        self.table.add_row(
            f"{guides}… {len(branches):,} more",
            f"{blocks:,}",
            decimal(sum(branch.copies_bytes for branch in branches)),
            _of(sum(branch.host_count for branch in branches), blocks),
            _of(sum(branch.ssd_count for branch in branches), blocks),
            style="dim",
        )


def tree_table(
    tops: Sequence[Branch], depth_max: int, branches_max: int, lines_max: int, now: float
) -> Table:
    """Of branches of one namespace. `now` in Unix seconds."""
    lines = _Lines(depth_max, branches_max, lines_max, now)
    lines.add(tops, "", 0)
    return lines.table


def _of(count: int, whole: int) -> str:
    return "all" if count == whole else f"{count:,}" if count else "-"


def _leaves(node: pb.TreeNode) -> str:
    parts = []
    if node.pinned_count:
        parts.append(f"{node.pinned_count:,} held")
    if node.host_leaving_rank:
        parts.append(f"#{node.host_leaving_rank}")
    if node.ssd_leaving_count:
        parts.append(f"SSD {node.ssd_leaving_count:,}")
    return ", ".join(parts)
