"""The host arena: slabs of several sizes in one shared mapping, exact capacity."""

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from storage.errors import BlockTooLargeError, CapacityError
from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES, Slab

PAGE = PAGE_BYTES


@pytest.fixture
def arena() -> Iterator[HostArena]:
    arena = HostArena(64 * PAGE, extent_bytes=16 * PAGE)
    yield arena
    arena.check_integrity()
    arena.close()


def take_all(arena: HostArena, block_bytes: int) -> list[Slab]:
    slabs = []
    while (slab := arena.allocate(block_bytes)) is not None:
        slabs.append(slab)
        arena.check_integrity()
    return slabs


def test_a_full_arena_holds_exactly_its_capacity(arena: HostArena) -> None:
    slabs = take_all(arena, 2 * PAGE)
    assert len(slabs) == 32
    assert arena.used_bytes == arena.capacity_bytes == 64 * PAGE
    assert len({slab.offset for slab in slabs}) == 32


def test_a_block_is_rounded_up_to_whole_pages(arena: HostArena) -> None:
    slab = arena.allocate(PAGE + 1)
    assert slab is not None
    assert slab.size_bytes == 2 * PAGE
    assert slab.offset % PAGE == 0
    assert len(arena.view(slab)) == 2 * PAGE


def test_an_emptied_extent_serves_another_block_size(arena: HostArena) -> None:
    small = take_all(arena, PAGE)
    assert arena.allocate(8 * PAGE) is None
    for slab in small:
        if slab.offset < 16 * PAGE:
            arena.free(slab)
    assert len(take_all(arena, 8 * PAGE)) == 2
    assert arena.allocate(PAGE) is None


def test_freed_slabs_of_the_lowest_extent_are_used_first(arena: HostArena) -> None:
    slabs = take_all(arena, PAGE)
    low, high = slabs[3], slabs[40]
    arena.free(high)
    arena.free(low)
    assert arena.allocate(PAGE) == low
    assert arena.allocate(PAGE) == high


def test_a_block_larger_than_an_extent_is_refused(arena: HostArena) -> None:
    with pytest.raises(BlockTooLargeError):
        arena.allocate(16 * PAGE + 1)
    with pytest.raises(BlockTooLargeError):
        arena.slab_bytes(0)


@pytest.mark.parametrize(
    ("capacity", "extent"), [(0, PAGE), (PAGE, 2 * PAGE), (PAGE, 100), (PAGE - 1, None)]
)
def test_a_capacity_without_a_whole_extent_is_refused(capacity: int, extent: int | None) -> None:
    with pytest.raises(CapacityError):
        HostArena(capacity, extent_bytes=extent)


@pytest.mark.parametrize("capacity", [1 << 50, 1 << 70])
def test_more_memory_than_the_machine_has_is_refused_before_it_is_taken(capacity: int) -> None:
    with pytest.raises(CapacityError, match="this machine has"):
        HostArena(capacity)


def test_capacity_is_rounded_down_to_whole_extents() -> None:
    arena = HostArena(35 * PAGE, extent_bytes=16 * PAGE)
    assert arena.capacity_bytes == 32 * PAGE
    assert os.fstat(arena.fd).st_size == 32 * PAGE
    arena.close()


def test_a_client_that_maps_the_descriptor_sees_and_writes_the_same_bytes(
    arena: HostArena,
) -> None:
    slab = arena.allocate(PAGE)
    assert slab is not None
    with mmap.mmap(os.dup(arena.fd), arena.capacity_bytes) as client:
        client[slab.offset : slab.offset + 4] = b"KVKV"
        assert bytes(arena.view(slab)[:4]) == b"KVKV"


def test_a_client_cannot_resize_the_arena(arena: HostArena) -> None:
    for size in (0, arena.capacity_bytes * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)


@pytest.mark.parametrize("seed", range(4))
def test_random_sizes_come_and_go_without_overlap_or_leak(arena: HostArena, seed: int) -> None:
    rng = random.Random(seed)
    held: dict[Slab, int] = {}
    for _ in range(800):
        if held and rng.random() < 0.5:
            slab = rng.choice(list(held))
            assert set(arena.view(slab)) == {held.pop(slab)}
            arena.free(slab)
        else:
            new = arena.allocate(rng.choice([1, PAGE, 3 * PAGE, 7 * PAGE, 16 * PAGE]))
            if new is not None:
                held[new] = rng.randrange(256)
                arena.view(new)[:] = bytes([held[new]]) * new.size_bytes
        arena.check_integrity()
    for slab in held:
        arena.free(slab)
    assert arena.used_bytes == 0
    assert len(take_all(arena, 16 * PAGE)) == 4
