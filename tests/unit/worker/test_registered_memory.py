"""What of an arena is registered with a device, and for how long."""

import fcntl
import gc
import os
from collections.abc import Callable, Iterator

import pytest

from worker.registered_memory import RegisteredMemory
from worker.transfer import ArenaMap

PIECE = 8 * 4096
BLOCK = 3 * 4096


class Registry:
    """What a device knows; refuses after `limit` pieces."""

    def __init__(self, limit: int = 100) -> None:
        self.known: dict[int, int] = {}
        self._limit = limit

    def register(self, address: int, size: int) -> str:
        if len(self.known) == self._limit:
            return "no more"
        assert address not in self.known
        self.known[address] = size
        return ""

    def unregister(self, address: int) -> None:
        del self.known[address]


def always() -> bool:
    return True


@pytest.fixture
def make_arena() -> Iterator[Callable[[], ArenaMap]]:
    made: list[int] = []

    def make() -> ArenaMap:
        made.append(os.memfd_create("test-arena", os.MFD_ALLOW_SEALING))
        os.truncate(made[-1], 3 * PIECE)
        fcntl.fcntl(made[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return ArenaMap(made[-1], 3 * PIECE, BLOCK)

    yield make
    for descriptor in made:
        os.close(descriptor)


def registered(registry: Registry) -> RegisteredMemory:
    return RegisteredMemory(registry.register, registry.unregister, PIECE)


def test_an_arena_is_registered_in_pieces_and_a_slab_counts_that_one_piece_has(
    make_arena: Callable[[], ArenaMap],
) -> None:
    registry, arena = Registry(), make_arena()
    memory = registered(registry)
    assert not memory.has(arena.slab(0))
    assert memory.add(arena, always) == ""
    assert sorted(registry.known.values()) == [PIECE] * 3
    assert memory.registered_bytes == 3 * PIECE
    whole = [memory.has(arena.slab(at)) for at in (0, PIECE - BLOCK, PIECE, 3 * PIECE - BLOCK)]
    across = [memory.has(arena.slab(at)) for at in (PIECE - BLOCK + 4096, PIECE - 4096)]
    assert (whole, across) == ([True] * 4, [False] * 2)
    assert not memory.has(make_arena().slab(0))


def test_what_the_system_refuses_stays_out_and_is_said(make_arena: Callable[[], ArenaMap]) -> None:
    registry, arena = Registry(limit=2), make_arena()
    memory = registered(registry)
    assert memory.add(arena, always) == "no more"
    assert memory.registered_bytes == 2 * PIECE
    assert [memory.has(arena.slab(at * PIECE)) for at in range(3)] == [True, True, False]


def test_registering_that_was_cut_goes_on_where_it_was(make_arena: Callable[[], ArenaMap]) -> None:
    registry, arena = Registry(), make_arena()
    memory = registered(registry)
    memory.add(arena, lambda: not registry.known)
    assert memory.registered_bytes == PIECE
    memory.add(arena, always)
    memory.add(arena, always)
    assert memory.registered_bytes == 3 * PIECE


def test_an_arena_is_unregistered_with_its_last_holder_and_before_it_is_unmapped(
    make_arena: Callable[[], ArenaMap],
) -> None:
    registry, arena, other = Registry(), make_arena(), make_arena()
    memory = registered(registry)
    memory.add(arena, always)
    memory.add(other, always)
    slab = arena.slab(0)  # The mapping is there for as long as this.
    del arena
    gc.collect()
    assert len(registry.known) == 3
    assert not memory.has(slab)
    assert memory.has(other.slab(0))
