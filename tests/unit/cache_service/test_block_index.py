"""The block index: no block is ever stranded, in either tier, whatever leaves."""

import random
from collections.abc import Iterator

import pytest

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.chains import Chain
from cache_service.index import BlockIndex
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.greedy_dual import GreedyDual
from storage.tier import PAGE_BYTES, SegmentId, SsdLocation

NAMESPACE = NamespaceId(bytes(32))
SIZE = 100


class Shelf:
    """An index with shorthand for tests: blocks are numbers."""

    def __init__(self, arena: HostArena) -> None:
        self.arena = arena
        self.index = BlockIndex(arena, GreedyDual(), GreedyDual(), evicted_memory_count=4)
        self.tree = self.index.tree
        self.offset = 0

    def hash_of(self, number: int) -> BlockHash:
        return BlockHash(number.to_bytes(32, "big"))

    def __getitem__(self, number: int) -> int:
        """The row of a block, or ABSENT."""
        return self.tree.find(self.hash_of(number))

    def number(self, row: int) -> int:
        return int.from_bytes(self.tree.block_hash(row), "big")

    def entered(self, number: int, parent: int | None) -> int:
        if self[number] != ABSENT:
            return self[number]
        above = NOWHERE if parent is None else self[parent]
        return self.index.add(self.hash_of(number), above, NAMESPACE, SIZE)

    def host(self, number: int, parent: int | None = None) -> int:
        row = self.entered(number, parent)
        slab = self.arena.allocate(SIZE)
        assert slab is not None
        self.index.put_host(row, slab, number)
        self.index.check_integrity()
        return row

    def ssd(self, number: int, parent: int | None = None, segment: int = 0) -> int:
        row = self.entered(number, parent)
        self.offset += PAGE_BYTES
        place = SsdLocation(SegmentId(segment), 1, self.offset, SIZE, number, SIZE)
        self.index.put_ssd(row, place)
        self.index.check_integrity()
        return row

    def evict(self) -> int | None:
        row = self.index.host_victim()
        if row is None:
            return None
        block_hash = self.index.tree.block_hash(row)
        self.arena.free(self.index.evict_host(row))
        self.index.check_integrity()
        return int.from_bytes(block_hash, "big")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    arena = HostArena(64 * PAGE_BYTES, extent_bytes=16 * PAGE_BYTES)
    yield Shelf(arena)
    arena.close()


def test_a_chain_leaves_memory_from_its_end(shelf: Shelf) -> None:
    shelf.host(1)
    shelf.host(2, parent=1)
    shelf.host(3, parent=2)
    assert [shelf.evict() for _ in range(4)] == [3, 2, 1, None]
    assert len(shelf.index) == 0
    assert shelf.arena.slab_count == 0


def test_a_run_ends_where_another_continues_the_chain(shelf: Shelf) -> None:
    for number, parent in ((1, None), (2, 1), (3, 2), (9, 1)):
        shelf.host(number, parent)
    shelf.index.refresh([shelf[9]])
    assert len(shelf.index.evict_host_run(PAGE_BYTES, 8)) == 2
    shelf.index.check_integrity()
    assert [shelf[n] == ABSENT for n in (1, 2, 3, 9)] == [False, True, True, False]


def test_a_run_ends_at_a_block_of_another_size(shelf: Shelf) -> None:
    first = shelf.host(1)
    row = shelf.index.add(shelf.hash_of(2), first, NAMESPACE, PAGE_BYTES + 1)
    slab = shelf.arena.allocate(PAGE_BYTES + 1)
    assert slab is not None
    shelf.index.put_host(row, slab, 2)
    assert shelf.index.evict_host_run(PAGE_BYTES, 8) == []
    assert shelf.index.evict_host_run(2 * PAGE_BYTES, 8) == [slab]
    shelf.index.check_integrity()
    assert shelf[1] == first


def test_a_block_with_a_copy_on_the_ssd_stays_cached_when_it_leaves_memory(shelf: Shelf) -> None:
    shelf.host(1)
    shelf.ssd(1)
    assert shelf.evict() == 1
    assert not shelf.tree.in_host(shelf[1])
    assert shelf.tree.on_ssd(shelf[1])


def test_a_pinned_block_is_no_victim_until_its_last_pin_goes(shelf: Shelf) -> None:
    row = shelf.host(1)
    shelf.index.pin(row)
    shelf.index.pin(row)
    assert shelf.evict() is None
    shelf.index.unpin(row)
    assert shelf.evict() is None
    shelf.index.unpin(row)
    assert shelf.evict() == 1


def test_a_memory_child_of_an_ssd_parent_goes_when_the_parent_does(shelf: Shelf) -> None:
    shelf.ssd(1)
    shelf.host(2, parent=1)
    shelf.host(3, parent=2)
    forgotten = shelf.index.drop_ssd(shelf[1], MissReason.EVICTED)
    shelf.index.check_integrity()
    assert forgotten == [shelf.hash_of(1)]
    assert len(shelf.index) == 0
    assert shelf.arena.slab_count == 0


def test_dropping_from_the_ssd_takes_descendants_off_it_and_leaves_memory_copies(
    shelf: Shelf,
) -> None:
    for number, parent in ((1, None), (2, 1), (3, 2)):
        shelf.host(number, parent)
        shelf.ssd(number, segment=number)
    forgotten = shelf.index.drop_ssd(shelf[2], MissReason.EVICTED)
    shelf.index.check_integrity()
    assert set(forgotten) == {shelf.hash_of(2), shelf.hash_of(3)}
    assert [shelf.tree.in_host(shelf[n]) for n in (1, 2, 3)] == [True] * 3
    assert shelf.tree.on_ssd(shelf[1])
    assert [shelf.evict() for _ in range(3)] == [3, 2, 1]


def test_a_dropped_block_is_gone_with_all_that_follows_and_says_why(shelf: Shelf) -> None:
    for number, parent in ((1, None), (2, 1), (3, 2), (4, 1)):
        shelf.host(number, parent)
    shelf.index.drop(shelf[2], MissReason.CORRUPT)
    shelf.index.check_integrity()
    assert {n for n in (1, 2, 3, 4) if shelf[n] != ABSENT} == {1, 4}
    assert shelf.index.absences.reason(shelf.hash_of(2)) is MissReason.CORRUPT
    assert shelf.index.absences.reason(shelf.hash_of(3)) is MissReason.EVICTED
    assert shelf.index.absences.reason(shelf.hash_of(9)) is MissReason.NEVER_STORED


def test_a_pinned_block_that_is_dropped_is_invisible_and_keeps_its_slab(shelf: Shelf) -> None:
    row = shelf.host(1)
    shelf.index.pin(row)
    shelf.index.drop(row, MissReason.CORRUPT)
    assert shelf[1] == ABSENT
    assert shelf.arena.slab_count == 1
    again = shelf.host(1)
    assert again != row
    shelf.index.unpin(row)
    assert shelf.arena.slab_count == 1
    assert shelf.tree.in_host(again)
    assert shelf.host(2) == row, "a row is used again once nobody holds it"


def test_what_was_used_again_leaves_after_what_was_not(shelf: Shelf) -> None:
    shelf.host(1)
    shelf.host(2)
    shelf.index.use([shelf[1]])
    shelf.host(3)
    assert [shelf.evict() for _ in range(3)] == [2, 3, 1]


def test_uses_are_known_to_the_other_tier_when_a_block_is_promoted(shelf: Shelf) -> None:
    shelf.ssd(1)
    shelf.index.use([shelf[1]])
    shelf.host(1)
    shelf.host(2)
    assert shelf.evict() == 2


def test_protection_reaches_from_a_pinned_block_to_its_root(shelf: Shelf) -> None:
    for number, parent in ((1, None), (2, 1), (3, 2), (4, 2)):
        shelf.ssd(number, parent)
    shelf.index.pin(shelf[3])
    assert shelf.index.protected() == {shelf[1], shelf[2], shelf[3]}


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_stay_whole_while_copies_come_and_go(shelf: Shelf, seed: int) -> None:
    rng = random.Random(seed)
    tree = shelf.tree
    pinned: list[int] = []
    for step in range(1, 400):
        rows = list(tree)
        row = rng.choice(rows) if rows else NOWHERE
        action = rng.randrange(8)
        room = shelf.arena.slab_count < 60
        if row == NOWHERE or (action == 0 and room):
            shelf.host(step, shelf.number(row) if row != NOWHERE else None)
        elif action == 1 and (tree.parent(row) == NOWHERE or tree.on_ssd(tree.parent(row))):
            if not tree.on_ssd(row):
                shelf.ssd(shelf.number(row), segment=rng.randrange(3))
        elif action == 2:
            shelf.evict()
        elif action == 3 and tree.on_ssd(row):
            shelf.index.drop_ssd(row, MissReason.EVICTED)
        elif action == 4 and rng.random() < 0.3:
            shelf.index.drop(row, MissReason.CORRUPT)
        elif action == 5:
            shelf.index.pin(row)
            pinned.append(row)
        elif action == 6 and pinned:
            shelf.index.unpin(pinned.pop(rng.randrange(len(pinned))))
        elif action == 7:
            shelf.index.use([row])
        shelf.index.check_integrity()
    for row in pinned:
        shelf.index.unpin(row)
    for row in list(tree):
        if tree.cached(row):
            shelf.index.drop(row, MissReason.EVICTED)
    shelf.index.check_integrity()
    assert shelf.arena.slab_count == 0


def test_more_blocks_than_were_reserved_for_make_the_index_grow() -> None:
    arena = HostArena(3000 * PAGE_BYTES, extent_bytes=100 * PAGE_BYTES)
    shelf = Shelf(arena)
    tree = shelf.tree
    before = tree.directory.row_capacity
    rows = []
    for number in range(2 * before + 10):
        parent = rows[number - 1] if number % 50 else NOWHERE
        row = shelf.index.add(shelf.hash_of(number), parent, NAMESPACE, SIZE)
        slab = arena.allocate(SIZE)
        assert slab is not None
        shelf.index.put_host(row, slab, number)
        rows.append(row)
    shelf.index.check_integrity()
    assert tree.directory.row_capacity > 2 * before
    assert [tree.checksum(row) for row in rows] == list(range(len(rows)))
    tree.reserve(100_000)
    shelf.index.check_integrity()
    assert tree.find_chain(Chain.of([shelf.hash_of(n) for n in range(len(rows))])).tolist() == rows
    arena.close()
