"""Room in host memory: block sizes share the arena, none starves another, none leaves in vain."""

import random
from collections.abc import Iterator

import pytest

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.index import BlockIndex
from cache_service.listener import QuietListener
from cache_service.room import HostRoom
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES, eviction_order
from storage.tier import PAGE_BYTES

SMALL, LARGE = PAGE_BYTES, 8 * PAGE_BYTES
EXTENT = 16 * PAGE_BYTES
"""Sixteen small slabs or two large ones; the arena has four extents."""


class Host:
    """A room whose blocks are numbers; one namespace for each size."""

    def __init__(self, arena: HostArena, policy: str = "greedy_dual") -> None:
        self.arena = arena
        self.index = BlockIndex(arena, eviction_order(policy), eviction_order(policy), 1000)
        self.room = HostRoom(arena, self.index, QuietListener(), wait_seconds=1.0)

    def row(self, number: int) -> int:
        return self.index.tree.find(BlockHash(number.to_bytes(32, "big")))

    def put(self, number: int, size: int, parent: int | None = None) -> bool:
        slab = self.room.take(size)
        above = NOWHERE if parent is None else self.row(parent)
        if slab is None or (parent is not None and above == ABSENT):
            if slab is not None:
                self.room.give_back(slab)
            return False
        block_hash = BlockHash(number.to_bytes(32, "big"))
        namespace_id = NamespaceId(size.to_bytes(32, "big"))
        row = self.index.add(block_hash, above, namespace_id, size)
        self.index.put_host(row, slab, 0)
        return True

    def present(self, numbers: range) -> set[int]:
        return {number for number in numbers if self.row(number) != ABSENT}

    def check(self) -> None:
        self.index.check_integrity()
        self.arena.check_integrity()
        assert self.arena.slab_count == self.index.host_count


@pytest.fixture
def arena() -> Iterator[HostArena]:
    arena = HostArena(4 * EXTENT, extent_bytes=EXTENT)
    yield arena
    arena.close()


def test_a_new_size_takes_one_extent_and_leaves_the_others_alone(arena: HostArena) -> None:
    host = Host(arena)
    for number in range(64):
        assert host.put(number, SMALL)
    assert host.put(100, LARGE)
    host.check()
    assert len(host.present(range(64))) == 48
    assert host.put(101, LARGE), "the other half of the extent"
    assert len(host.present(range(64))) == 48


def test_the_extent_worth_least_is_the_one_that_is_taken(arena: HostArena) -> None:
    host = Host(arena)
    for number in range(64):
        host.put(number, SMALL)
    host.index.use(host.row(n) for n in range(64) if not 32 <= n < 48)
    assert host.put(100, LARGE)
    assert host.present(range(64)) == set(range(64)) - set(range(32, 48))


def test_a_leased_block_in_every_extent_costs_a_stranger_nothing(arena: HostArena) -> None:
    """Throwing out all the others would not make room either, so none leaves."""
    host = Host(arena)
    for number in range(64):
        host.put(number, SMALL)
    for number in range(0, 64, 16):
        host.index.pin(host.row(number))
    assert not host.put(100, LARGE)
    assert len(host.present(range(64))) == 64
    host.check()


def test_a_size_that_cannot_grow_lives_on_in_what_it_has(arena: HostArena) -> None:
    host = Host(arena)
    host.put(100, LARGE)
    host.put(101, LARGE)
    for number in range(48):
        host.put(number, SMALL)
    for number in range(0, 48, 16):
        host.index.pin(host.row(number))
    host.index.use([host.row(100), host.row(101)])
    for number in range(102, 110):
        assert host.put(number, LARGE)
        host.check()
    assert len(host.present(range(48))) == 48


def test_what_continues_a_block_leaves_with_it(arena: HostArena) -> None:
    host = Host(arena)
    for number in range(64):
        host.put(number, SMALL, parent=number - 1 if number else None)
    assert host.put(100, LARGE)
    host.check()
    left = host.present(range(64))
    assert left == set(range(len(left))), "the rest is still one chain from its root"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_sizes_come_and_go_at_random_and_none_is_refused_while_room_can_be_made(
    arena: HostArena, policy: str, seed: int
) -> None:
    rng = random.Random(seed)
    host = Host(arena, policy)
    pinned: list[int] = []
    sizes = [SMALL, 3 * PAGE_BYTES, LARGE, EXTENT]
    last: dict[int, int] = {}
    for number in range(1, 200):
        size = rng.choice(sizes)
        chained = rng.random() < 0.5 and host.row(last.get(size, 0)) != ABSENT
        if chained:
            host.index.pin(parent := host.row(last[size]))
        stored = host.put(number, size, last[size] if chained else None)
        if chained:
            host.index.unpin(parent)
        last[size] = number
        held = {host.index.tree.slab(row).offset // EXTENT for row in host.index.protected()}
        assert stored or chained or len(held) == 4
        if stored and rng.random() < 0.1 and len(pinned) < 3:
            host.index.pin(host.row(number))
            pinned.append(host.row(number))
        elif pinned and rng.random() < 0.2:
            host.index.unpin(pinned.pop(0))
        host.check()
