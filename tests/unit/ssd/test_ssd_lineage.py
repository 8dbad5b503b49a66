"""Who is stranded, and which order puts parents before children."""

import hashlib
from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.ssd.lineage import STRANDED, depths, parent_positions, parents_first
from storage.tier import NO_PARENT


def name(i: int) -> bytes:
    return hashlib.sha256(b"%d" % i).digest()


def depths_of(parents: dict[int, int | None]) -> dict[int, int]:
    """Parent None = first block; a parent that is no key is not there."""
    hashes = column(name(i) for i in parents)
    above = column(NO_PARENT if p is None else name(p) for p in parents.values())
    return dict(zip(parents, depths(parent_positions(hashes, above)).tolist(), strict=True))


def column(values: Iterable[bytes]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(values), "V32")


def test_depth_counts_the_blocks_above() -> None:
    assert depths_of({5: None, 6: 5, 7: 6, 8: 5}) == {5: 0, 6: 1, 7: 2, 8: 1}


def test_all_descendants_of_a_missing_block_are_stranded() -> None:
    found = depths_of({1: None, 2: 1, 4: 3, 5: 4, 6: 5})
    assert found == {1: 0, 2: 1, 4: STRANDED, 5: STRANDED, 6: STRANDED}


def test_a_circle_is_stranded() -> None:
    assert depths_of({1: 2, 2: 1, 3: 2, 4: None, 5: 5}) == {1: -1, 2: -1, 3: -1, 4: 0, 5: -1}


def test_nothing_has_no_depth() -> None:
    assert depths_of({}) == {}


@given(st.lists(st.integers(-2, 60), max_size=60), st.randoms(use_true_random=False))
def test_depths_agree_with_walking_each_chain(picks: list[int], random) -> None:  # type: ignore[no-untyped-def]
    parents: dict[int, int | None] = {i: (None if p == -1 else p) for i, p in enumerate(picks)}
    keys = list(parents)
    random.shuffle(keys)
    parents = {k: parents[k] for k in keys}

    def walk(block: int) -> int:
        for depth in range(len(parents) + 1):
            parent = parents[block]
            if parent is None:
                return depth
            if parent not in parents:
                return STRANDED
            block = parent
        return STRANDED

    found = depths_of(parents)
    assert found == {b: walk(b) for b in parents}
    order = [keys[i] for i in parents_first(np.array([found[k] for k in keys], np.int64))]
    assert set(order) == {b for b in parents if found[b] != STRANDED}
    seen: set[int | None] = {None}
    for b in order:
        assert parents[b] in seen
        seen.add(b)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True), st.booleans())
def test_parents_are_found_however_alike_the_hashes_are(picks, alike: bool) -> None:
    """Hashes may agree in the eight bytes by which they are looked up."""

    def spelled(head: int, rest: int) -> bytes:
        return bytes([0 if alike else head + 1]) + bytes(8) + bytes([head + 1, rest]) + bytes(21)

    hashes = [spelled(*pick) for pick in picks]
    wanted = [spelled(head, rest) for head in range(4) for rest in range(4)] + [NO_PARENT]
    found = parent_positions(column(hashes), column(wanted))
    position = {block_hash: i for i, block_hash in enumerate(hashes)}
    assert found.tolist() == [*(position.get(w, -2) for w in wanted[:-1]), -1]


def test_chains_longer_than_sixteen_bits_are_ordered_too() -> None:
    depth = np.array([70_000, STRANDED, 0, 65_535, 1, STRANDED, 0], np.int64)
    assert parents_first(depth).tolist() == [2, 6, 4, 3, 0]
    assert parents_first(depth[1:3]).tolist() == [1]


def test_a_block_named_like_no_parent_is_nobody_s_parent() -> None:
    hashes = [NO_PARENT, name(1)]
    assert parent_positions(column(hashes), column([name(1), NO_PARENT])).tolist() == [1, -1]
