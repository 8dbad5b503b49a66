"""The directory finds every block it holds and no other, whatever came and went before."""

import os
import random

import numpy as np
import pytest

from cache_service.block_directory import ABSENT, BlockDirectory


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_a_dict_while_hashes_come_and_go(seed: int) -> None:
    rng = random.Random(seed)
    directory, rows = BlockDirectory(), dict[bytes, int]()
    for _ in range(6000):
        if not rows or rng.random() < 0.55:
            block_hash = rng.randbytes(32)
            rows[block_hash] = directory.insert(block_hash)
        else:
            block_hash = rng.choice(list(rows)[:50])
            row = rows.pop(block_hash)
            directory.unlist(row)
            assert directory.hash_of(row) == block_hash, "the row is not given away before `free`"
            directory.free(row)
            assert directory.find(block_hash) == ABSENT
    directory.check_integrity()
    assert len(directory) == len(rows) == len(set(rows.values()))
    asked = [*rows, *(rng.randbytes(32) for _ in range(100))]
    assert directory.find_many(asked) == [rows.get(each, ABSENT) for each in asked]
    assert [directory.find(each) for each in asked] == directory.find_many(asked)


def test_hashes_that_share_words_are_told_apart() -> None:
    directory = BlockDirectory()
    hashes = [bytes(31) + bytes([n]) for n in range(100)] + [bytes([n]) * 32 for n in range(1, 100)]
    rows = [directory.insert(each) for each in hashes]
    assert directory.find_many(hashes) == rows
    for row in rows[::2]:
        directory.unlist(row)
    directory.check_integrity()
    assert directory.find_many(hashes) == [ABSENT if i % 2 == 0 else r for i, r in enumerate(rows)]


def test_reserving_keeps_what_is_listed_and_what_is_taken() -> None:
    directory = BlockDirectory()
    hashes = [os.urandom(32) for _ in range(500)]
    rows = [directory.insert(each) for each in hashes]
    directory.unlist(rows[7])
    directory.reserve(100_000)
    assert directory.row_capacity == 100_000
    assert directory.hash_of(rows[7]) == hashes[7]
    assert directory.find(hashes[7]) == ABSENT
    assert directory.find_many(hashes[8:]) == rows[8:]
    directory.check_integrity()


def test_many_at_once_get_rows_in_order() -> None:
    hashes = np.frombuffer(os.urandom(32 * 5000), np.uint8).reshape(-1, 32)
    directory = BlockDirectory()
    directory.insert_many(hashes)
    directory.check_integrity()
    assert directory.find_many([each.tobytes() for each in hashes]) == list(range(5000))
    assert directory.insert(bytes(32)) == 5000


def test_a_block_takes_less_than_seventy_bytes() -> None:
    directory = BlockDirectory()
    directory.insert_many(np.frombuffer(os.urandom(32 * 100_000), np.uint8).reshape(-1, 32))
    assert directory.memory_bytes / 100_000 < 70


@pytest.mark.parametrize("seed", range(4))
def test_runs_come_and_go_as_their_hashes_would(seed: int) -> None:
    rng = random.Random(seed)
    directory, rows = BlockDirectory(), dict[bytes, int]()
    for _ in range(400):
        if not rows or rng.random() < 0.55:
            hashes = [rng.randbytes(32) for _ in range(rng.randrange(1, 40))]
            words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)
            taken = directory.insert_run(words).tolist()
            assert set(taken).isdisjoint(rows.values())
            rows.update(zip(hashes, taken, strict=True))
        else:
            gone = rng.sample(sorted(rows), min(len(rows), rng.randrange(1, 40)))
            at = np.array([rows.pop(each) for each in gone])
            directory.unlist_run(at)
            assert directory.find_many(gone) == [ABSENT] * len(gone)
            directory.free_run(at)
    directory.check_integrity()
    assert directory.find_many(list(rows)) == list(rows.values())
    assert len(directory) == len(rows)


def test_a_crowded_stretch_of_the_table_survives_runs() -> None:
    """All entries lie one behind the other: each that goes has others to move."""
    directory = BlockDirectory()
    directory._homes = lambda words: np.full(len(words), 5)  # type: ignore[method-assign]
    directory._home = lambda *_: 5  # type: ignore[method-assign]
    hashes = [os.urandom(32) for _ in range(60)]
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)
    rows = directory.insert_run(words)
    directory.check_integrity()
    for part in (slice(10, 30), slice(55, 60), slice(0, 5)):
        directory.unlist_run(rows[part])
        directory.free_run(rows[part])
        directory.check_integrity()
    kept = [i for i in range(60) if not (10 <= i < 30 or i >= 55 or i < 5)]
    assert directory.find_many([hashes[i] for i in kept]) == rows[kept].tolist()
