"""Segment files that are missing, short, doubled, foreign or of another time, with any index.

The index is there or lost; the files are those of the table. No case gives a wrong byte, changes
the capacity or keeps the store from opening, and what lies intact where the index (or, without
one, its own header) says is found.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import CorruptBlockError
from storage.ssd.format import segment_path
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import SEGMENT_BYTES, Block, append, block, read
from tests.ssd.scenarios import ROOTS, opened

FIRST, SECOND, OPEN, FREE = (SegmentId(i) for i in range(4))
"""Two sealed segments of five blocks each, one with two, and one that was never used."""
IN_FIRST, IN_SECOND, IN_OPEN = set(range(5)), set(range(5, 10)), {10, 11}
ALL = IN_FIRST | IN_SECOND | IN_OPEN


def missing(path: Path, foreign: Path) -> None:
    segment_path(path, FIRST).unlink()


def empty(path: Path, foreign: Path) -> None:
    segment_path(path, FIRST).write_bytes(b"")


def half(path: Path, foreign: Path) -> None:
    raw = segment_path(path, FIRST).read_bytes()
    segment_path(path, FIRST).write_bytes(raw[: SEGMENT_BYTES // 2])


def long(path: Path, foreign: Path) -> None:
    with segment_path(path, FIRST).open("ab") as file:
        file.write(bytes(PAGE_BYTES))


def noise(path: Path, foreign: Path) -> None:
    segment_path(path, FIRST).write_bytes(random.Random(1).randbytes(SEGMENT_BYTES))


def zeros(path: Path, foreign: Path) -> None:
    segment_path(path, FIRST).write_bytes(bytes(SEGMENT_BYTES))


def another_stores(path: Path, foreign: Path) -> None:
    shutil.copy(segment_path(foreign, FIRST), segment_path(path, FIRST))


def doubled(path: Path, foreign: Path) -> None:
    shutil.copy(segment_path(path, SECOND), segment_path(path, FIRST))


def doubled_into_a_free_one(path: Path, foreign: Path) -> None:
    shutil.copy(segment_path(path, FIRST), segment_path(path, FREE))


def swapped(path: Path, foreign: Path) -> None:
    first, second = segment_path(path, FIRST), segment_path(path, SECOND)
    raw = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(raw)


def one_too_many(path: Path, foreign: Path) -> None:
    shutil.copy(segment_path(path, FIRST), segment_path(path, SegmentId(9)))


def a_strange_name(path: Path, foreign: Path) -> None:
    shutil.copy(segment_path(path, FIRST), path / "segments" / "000000.seg.bak")


def open_one_missing(path: Path, foreign: Path) -> None:
    segment_path(path, OPEN).unlink()


def all_missing(path: Path, foreign: Path) -> None:
    shutil.rmtree(path / "segments")


CASES: dict[Callable[[Path, Path], None], set[int]] = {
    missing: ALL - IN_FIRST,
    empty: ALL - IN_FIRST,
    half: ALL - IN_FIRST,
    long: ALL - IN_FIRST,
    noise: ALL - IN_FIRST,
    zeros: ALL - IN_FIRST,
    another_stores: ALL - IN_FIRST,
    doubled: ALL - IN_FIRST,
    doubled_into_a_free_one: ALL,
    swapped: IN_OPEN,
    one_too_many: ALL,
    a_strange_name: ALL,
    open_one_missing: ALL - IN_OPEN,
    all_missing: set(),
}
"""What must be found. A segment whose header is damaged is believed from the index, so its blocks
may be listed; reading them is what tells."""

FOREIGN_BLOCKS = [block(f"foreign {i}") for i in range(5)]


@pytest.fixture
async def store(memory_path: Path, encryption: Encryption) -> tuple[Path, Path]:
    """A store, and another one with keys of its own under the same master key."""
    for name, blocks in (("store", ROOTS[:12]), ("foreign", FOREIGN_BLOCKS)):
        tier = opened(memory_path / name, encryption=encryption)
        await append(tier, blocks)
        await tier.close()
    return memory_path / "store", memory_path / "foreign"


@pytest.mark.parametrize("index", ["with its index", "without an index"])
@pytest.mark.parametrize("damage", CASES, ids=lambda d: d.__name__)
async def test_what_lies_where_it_should_is_found_and_nothing_else_is_read(
    store, damage, index, encryption
) -> None:
    path, foreign = store
    damage(path, foreign)
    if index == "without an index":
        shutil.rmtree(path / "index")
    expected = CASES[damage]
    clear = encryption == NO_ENCRYPTION
    if damage is another_stores and index == "without an index" and clear:
        # A segment of another store with the same number is whole in itself: its blocks are what
        # their hashes say, so that having them is right.
        assert await found(path, encryption, ROOTS[:12], FOREIGN_BLOCKS) == expected
    else:
        assert await found(path, encryption, ROOTS[:12], []) == expected
    also = FOREIGN_BLOCKS if clear else []
    assert await found(path, encryption, ROOTS[:12], also) == expected, "told once, then settled"


async def found(
    path: Path, encryption: Encryption, blocks: list[Block], also: list[Block]
) -> set[int]:
    """Positions in `blocks` of what is read back."""
    known = {b.hash: b for b in [*blocks, *also, block("fresh")]}
    tier = opened(path, encryption=encryption)
    good = set()
    for record, at in tier.recovered():
        try:
            raw = await read(tier, record, at)
        except CorruptBlockError:
            await tier.forget([record.block_hash])
            continue
        assert raw == known[record.block_hash].payload
        if known[record.block_hash] in blocks:
            good.add(blocks.index(known[record.block_hash]))
    sizes = [f.stat().st_size for f in (path / "segments").iterdir() if f.suffix == ".seg"]
    assert sizes == [SEGMENT_BYTES] * 6
    (at,) = await append(tier, [fresh := block("fresh")])
    assert await read(tier, fresh.record, at) == fresh.payload
    tier.check_integrity()
    await tier.close()
    return good
