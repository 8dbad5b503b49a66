"""Eviction order, and the one rule of the tree: nothing resident is stranded."""

from kvtier.keys import BlockHash
from worker.block_table import BlockTable
from worker.page_pool import PagePool
from worker.prefix_tree import PrefixTree


def _chain(name: str, length: int) -> list[BlockHash]:
    return [BlockHash(f"{name}{index}".encode()) for index in range(length)]


def _leave(pool: PagePool, tree: PrefixTree, chain: list[BlockHash]) -> None:
    """As a request that computed `chain` and ended."""
    table = BlockTable(pool)
    for page in tree.use(chain):
        table.append(page)
    first = len(table)
    while len(table) < len(chain):
        table.append(pool.take())
    tree.seal(chain, table, first, len(chain))
    table.clear()
    tree.check_integrity()
    pool.check_integrity()


def test_leaves_go_before_their_parents() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    chain = _chain("a", 4)
    _leave(pool, tree, chain)
    for left in (3, 2, 1, 0):
        assert tree.evict()
        tree.check_integrity()
        assert len(tree.match(chain)) == left
    assert not tree.evict()
    assert pool.free_count == 8


def test_least_recent_of_equally_used_leaves_goes_first() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    for name in "abc":
        _leave(pool, tree, _chain(name, 1))
    tree.evict()
    assert [len(tree.match(_chain(name, 1))) for name in "abc"] == [0, 1, 1]


def test_block_used_again_outlives_newer_ones() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    _leave(pool, tree, _chain("a", 1))
    _leave(pool, tree, _chain("a", 1))
    _leave(pool, tree, _chain("b", 1))
    tree.evict()
    assert [len(tree.match(_chain(name, 1))) for name in "ab"] == [1, 0]


def test_unused_favourite_ages_out() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    for _ in range(5):
        _leave(pool, tree, _chain("old", 1))
    for number in range(3):
        _leave(pool, tree, _chain(f"n{number}-", 1))
        tree.evict()
    assert not tree.match(_chain("old", 1))


def test_block_in_use_is_not_evicted_and_holds_its_ancestors() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    chain = _chain("a", 3)
    _leave(pool, tree, chain)
    held = BlockTable(pool)
    for page in tree.use(chain[:2]):
        held.append(page)
    assert tree.evict()
    assert not tree.evict()
    assert len(tree.match(chain)) == 2
    held.clear()
    assert tree.evict()


def test_block_computed_twice_is_kept_once() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    chain = _chain("a", 2)
    first, second = BlockTable(pool), BlockTable(pool)
    for table in (first, second):
        table.append(pool.take())
        table.append(pool.take())
        tree.seal(chain, table, 0, 2)
    assert first.pages == second.pages
    assert pool.used_count == 2
    first.clear()
    second.clear()
    tree.check_integrity()
    assert pool.idle_count == 2


def _leave_one_off(pool: PagePool, tree: PrefixTree, chain: list[BlockHash]) -> None:
    table = BlockTable(pool)
    for page in tree.hold(chain):
        table.append(page)
    first = len(table)
    while len(table) < len(chain):
        table.append(pool.take())
    tree.seal(chain, table, first, len(chain), one_off=True)
    table.clear()
    tree.check_integrity()
    pool.check_integrity()


def test_one_off_blocks_leave_before_all_others_and_teach_nothing() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    _leave(pool, tree, _chain("a", 2))
    _leave_one_off(pool, tree, _chain("d", 3))
    _leave(pool, tree, _chain("b", 2))
    for left in (2, 1, 0):
        tree.evict()
        tree.check_integrity()
        assert len(tree.match(_chain("d", 3))) == left
    # Evicting them moved no clock: what came last still stays longest.
    _leave(pool, tree, _chain("c", 1))
    tree.evict()
    assert [len(tree.match(_chain(name, 2))) for name in "abc"] == [1, 2, 1]


def test_a_one_off_that_goes_over_others_blocks_does_not_keep_them() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    _leave(pool, tree, _chain("a", 1))
    _leave(pool, tree, _chain("b", 1))
    _leave_one_off(pool, tree, _chain("a", 1))
    tree.evict()
    assert [len(tree.match(_chain(name, 1))) for name in "ab"] == [0, 1]


def test_a_one_off_block_that_others_use_is_one_like_others() -> None:
    pool = PagePool(8, 8)
    tree = PrefixTree(pool)
    _leave_one_off(pool, tree, _chain("a", 1))
    _leave_one_off(pool, tree, _chain("d", 1))
    _leave(pool, tree, _chain("b", 1))
    _leave(pool, tree, _chain("a", 1))
    tree.evict()
    tree.evict()
    assert [len(tree.match(_chain(name, 1))) for name in "adb"] == [1, 0, 0]
