"""Copies with their checksums, and how they spread over threads."""

import fcntl
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from kvtier.keys import BlockHash, payload_checksum
from worker.transfer import ArenaMap, CopyLanes, NonsenseError, copy_hashed, page_checksum


@pytest.mark.parametrize("size", [1, 4096, 256 * 1024, 256 * 1024 + 1, 1_000_003])
def test_a_copy_is_exact_and_its_checksum_is_the_pages(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros(size, dtype=np.uint8)
    name = BlockHash(bytes(range(32)))
    assert copy_hashed(name, source, target, target) == payload_checksum(name, source.tobytes())
    assert np.array_equal(source, target)
    assert page_checksum(name, target) == copy_hashed(name, source, target, source)


@pytest.fixture(params=[1, 2, 4])
def lanes(request: pytest.FixtureRequest) -> Iterator[CopyLanes]:
    lanes = CopyLanes(request.param)
    yield lanes
    lanes.close()


def test_lanes_do_each_index_once(lanes: CopyLanes) -> None:
    done: list[int] = []
    assert lanes.run(1000, lambda i: done.append(i) is None) == 1000
    assert sorted(done) == list(range(1000))
    assert lanes.run(0, lambda i: False) == 0


@pytest.mark.parametrize("bad", [{0}, {7}, {3, 50, 99}, {99}])
def test_lanes_count_the_leading_successes(lanes: CopyLanes, bad: set[int]) -> None:
    done: set[int] = set()

    def work(index: int) -> bool:
        done.add(index)
        return index not in bad

    for _ in range(50):
        done.clear()
        assert lanes.run(100, work) == min(bad)
        assert set(range(min(bad))) <= done


def test_what_work_raises_is_raised_after_all_lanes_ended(lanes: CopyLanes) -> None:
    running = 0
    lock = threading.Lock()

    def work(index: int) -> bool:
        nonlocal running
        with lock:
            running += 1
        try:
            if index == 5:
                raise NonsenseError("index 5")
            return True
        finally:
            with lock:
                running -= 1

    with pytest.raises(NonsenseError):
        lanes.run(100, work)
    assert running == 0


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = os.memfd_create("test-arena", os.MFD_ALLOW_SEALING)
    os.truncate(made, 3 * 4096)
    yield made
    os.close(made)


def test_offsets_outside_the_arena_are_nonsense(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    arena = ArenaMap(descriptor, 3 * 4096, 5000)
    assert len(arena.slab(0)) == len(arena.slab(3 * 4096 - 5000)) == 5000
    for offset in (-1, 3 * 4096 - 4999, 2**62):
        with pytest.raises(NonsenseError):
            arena.slab(offset)


def test_an_arena_that_could_shrink_is_not_mapped(descriptor: int) -> None:
    with pytest.raises(NonsenseError):
        ArenaMap(descriptor, 3 * 4096, 4096)


def test_an_arena_smaller_than_said_is_not_mapped(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(NonsenseError):
        ArenaMap(descriptor, 4 * 4096, 4096)
    with pytest.raises(NonsenseError):
        ArenaMap(descriptor, 3 * 4096, 4 * 4096)
