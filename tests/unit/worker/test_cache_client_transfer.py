"""Copies with their checksums, and how they spread over threads."""

import fcntl
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtier.keys import BlockHash, payload_checksum
from worker.copy_kernel import LINE_BYTES
from worker.transfer import (
    ArenaMap,
    CopyLanes,
    NonsenseError,
    copy_hashed,
    copy_one_hashed,
    leading_equal,
    page_checksum,
)

NAME = BlockHash(bytes(range(32)))


@pytest.mark.parametrize("size", [1, 4096, 256 * 1024, 256 * 1024 + 1, 1_000_003])
def test_a_copy_is_exact_and_its_checksum_is_the_pages(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros(size, dtype=np.uint8)
    right = payload_checksum(NAME, source.tobytes())
    assert copy_one_hashed(NAME, source, target, target) == right
    assert np.array_equal(source, target)
    target[:] = 0
    assert list(copy_hashed([NAME], [source], [target], [target])) == [right]
    assert np.array_equal(source, target)
    assert page_checksum(NAME, target) == copy_one_hashed(NAME, source, target, source)


@pytest.mark.parametrize("gap", [0, 1, 32])
def test_several_copies_go_where_they_belong_whether_aligned_or_not(gap: int) -> None:
    size, count = 4096, 5
    sources = np.random.default_rng(gap).integers(0, 256, (count, size), dtype=np.uint8)
    room = aligned(2 * count * size + gap)[gap:]
    room[:] = 7
    targets = [room[2 * i * size : (2 * i + 1) * size] for i in range(count)]
    names = [BlockHash(bytes([i]) * 32) for i in range(count)]
    sums = copy_hashed(names, list(sources), targets, targets)
    assert list(sums) == [
        payload_checksum(*pair) for pair in zip(names, map(bytes, sources), strict=True)
    ]
    assert np.array_equal(np.stack(targets), sources)
    between = [room[(2 * i + 1) * size : (2 * i + 2) * size] for i in range(count)]
    assert all((gap == 7).all() for gap in between)


@pytest.mark.parametrize(
    ("sources", "targets"), [([512, 512], [512, 256]), ([512, 256], [512, 512]), ([512], [512] * 2)]
)
def test_what_does_not_fit_is_refused_before_a_byte_moves(
    sources: list[int], targets: list[int]
) -> None:
    given = [np.ones(size, np.uint8) for size in sources]
    rooms = [aligned(size) for size in targets]
    with pytest.raises(ValueError, match="do not fit"):
        copy_hashed([NAME] * 2, given, rooms, rooms)
    assert not any(room.any() for room in rooms)


def test_no_copies_have_no_sums() -> None:
    assert list(copy_hashed([], [], [], [])) == []


@pytest.mark.parametrize(
    ("found", "right", "count"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 3], [1, 2], 1), ([0, 2], [1, 2], 0)],
)
def test_leading_sums_that_are_right(found: list[int], right: list[int], count: int) -> None:
    assert leading_equal(found, right) == count


def aligned(size: int) -> NDArray[np.uint8]:
    room = np.zeros(size + LINE_BYTES, np.uint8)
    return room[-room.ctypes.data % LINE_BYTES :][:size]


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


@pytest.mark.parametrize("each_bytes", [0, 1, 300_000, 700_000, 5_000_000])
@pytest.mark.parametrize("bad", [None, 0, 6, 7, 8, 23])
def test_lanes_count_what_leading_parts_did(
    lanes: CopyLanes, each_bytes: int, bad: int | None
) -> None:
    done: list[int] = []

    def work(first: int, end: int) -> int:
        good = end - first if bad is None or not first <= bad < end else bad - first
        done.extend(range(first, first + good))
        return good

    assert lanes.run_parts(24, each_bytes, work) == (24 if bad is None else bad)
    assert len(set(done)) == len(done)
    assert set(range(24 if bad is None else bad)) <= set(done)
    assert lanes.run_parts(0, each_bytes, work) == 0


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
