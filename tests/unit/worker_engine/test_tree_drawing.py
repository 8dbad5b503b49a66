"""What is drawn of a tree, and what the tree tells of itself."""

from kvtier.keys import BlockHash
from worker.block_table import BlockTable
from worker.page_pool import PagePool
from worker.prefix_tree import NodeView, PrefixTree
from worker.tree_drawing import draw_tree


def node(name: str, parent: str = "", holders: int = 0) -> NodeView:
    before = BlockHash(parent.encode()) if parent else None
    return NodeView(BlockHash(name.encode()), before, holders)


def draw(nodes: list[NodeView], before: list[NodeView] | None = None) -> str:
    return draw_tree(nodes, lambda block: block.decode()[0], nodes if before is None else before)


def test_empty_tree_is_a_dot() -> None:
    assert draw([]) == ".\n"


def test_runs_end_at_forks_and_where_holders_change() -> None:
    nodes = [
        node("a1"),
        node("a2", "a1"),
        node("b1", "a2", 2),
        node("b2", "b1", 1),
        node("c", "a2"),
    ]
    assert draw(nodes) == (
        ".\n+- a (2)\n   +- b (1) held by 2\n   |  +- b (1) held by 1\n   +- c (1)\n"
    )


def test_a_run_tells_each_label_once() -> None:
    nodes = [node("a1"), node("b", "a1"), node("a2", "b")]
    assert draw(nodes) == ".\n+- a, b (3)\n"


def test_what_came_and_what_left_since_is_marked_in_its_place() -> None:
    before = [node("a"), node("b", "a", 3), node("c", "b"), node("d")]
    after = [node("a"), node("e", "a"), node("d")]
    assert draw(after, before) == (".\n+- a (1)\n|  +- b, c (2) x\n|  +- e (1) *\n+- d (1)\n")


def test_a_snapshot_has_parents_first_and_counts_who_holds() -> None:
    pool = PagePool(4, 4)
    tree = PrefixTree(pool)
    assert tree.snapshot() == ()
    chain = [BlockHash(b"1"), BlockHash(b"2")]
    table = BlockTable(pool)
    for _ in chain:
        table.append(pool.take())
    tree.seal(chain, table, 0, 2)
    pages = tree.hold(chain[:1])
    assert tree.snapshot() == (
        NodeView(chain[0], None, 2),
        NodeView(chain[1], chain[0], 1),
    )
    pool.release(pages[0])
    table.clear()
    assert [view.holders for view in tree.snapshot()] == [0, 0]
    tree.evict()
    assert [view.block for view in tree.snapshot()] == chain[:1]
