"""The prefix tree as text, for people and golden files. Pure.

    .
    +- system prompt (2)
       +- first question (1)
       +- second question (3) *

A line is a run: blocks one after the other without a fork, all in one state; with how many they
are. `*` is new since `before`, `x` has left since, `held by N` is in use by so many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvtier.keys import BlockHash
from worker.prefix_tree import NodeView

__all__ = ["draw_tree"]


@dataclass(frozen=True, slots=True)
class _State:
    mark: str
    holders: int

    @property
    def text(self) -> str:
        held = f" held by {self.holders}" if self.holders else ""
        return self.mark + held


def draw_tree(
    nodes: Sequence[NodeView],
    label: Callable[[BlockHash], str],
    before: Sequence[NodeView] = (),
) -> str:
    """Lines of the tree of `nodes`, children in the order in which they came.

    `label` says what a block holds; equal labels of a run are told once. Each sequence has parents
    before children, as `PrefixTree.snapshot` tells them.
    """
    there = {node.block for node in nodes}
    known = {node.block for node in before}
    left = [replace(node, holders=0) for node in before if node.block not in there]
    states = {
        node.block: _State("" if node.block in known else " *", node.holders) for node in nodes
    }
    states |= {node.block: _State(" x", 0) for node in left}
    children: dict[BlockHash | None, list[BlockHash]] = {}
    order = {node.block: place for place, node in enumerate([*before, *nodes][::-1])}
    for node in sorted([*nodes, *left], key=lambda node: -order[node.block]):
        children.setdefault(node.parent, []).append(node.block)
    return "\n".join([".", *_lines(None, children, states, label, "")]) + "\n"


def _lines(
    parent: BlockHash | None,
    children: dict[BlockHash | None, list[BlockHash]],
    states: dict[BlockHash, _State],
    label: Callable[[BlockHash], str],
    indent: str,
) -> list[str]:
    lines = []
    below = children.get(parent, [])
    for place, first in enumerate(below):
        run = _run(first, children, states)
        texts = list(dict.fromkeys(label(block) for block in run))
        lines.append(f"{indent}+- {', '.join(texts)} ({len(run)}){states[first].text}")
        more = "   " if place == len(below) - 1 else "|  "
        lines += _lines(run[-1], children, states, label, indent + more)
    return lines


def _run(
    first: BlockHash,
    children: dict[BlockHash | None, list[BlockHash]],
    states: dict[BlockHash, _State],
) -> list[BlockHash]:
    run = [first]
    while len(below := children.get(run[-1], [])) == 1 and states[below[0]] == states[first]:
        run.append(below[0])
    return run
