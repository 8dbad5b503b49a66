"""Damaged files: what can be kept is kept, the rest is a reported miss, and never a wrong byte."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import rocksdict
import xxhash

from storage.errors import CorruptBlockError, FormatTooNewError
from storage.ssd.format import (
    FORMAT_VERSION,
    SegmentHeader,
    pack_record_header,
    pack_segment_header,
    parse_record_header,
    parse_segment_header,
    segment_path,
)
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, Block, append, block, chain, read


def reopen(directory: Path) -> SsdTier:
    return SsdTier.open(directory, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES)


async def stored(directory: Path, blocks: list[Block]) -> list:
    tier = reopen(directory)
    locations = await append(tier, blocks)
    await tier.close()
    return locations


async def survivors(directory: Path, blocks: list[Block]) -> tuple[set[int], SsdTier]:
    """Positions of blocks that recovery returns and that read back right; tier is closed."""
    tier = reopen(directory)
    position = {b.hash: i for i, b in enumerate(blocks)}
    found = set()
    try:
        for record, location in tier.recovered():
            b = blocks[position[record.block_hash]]
            assert record == b.record
            try:
                assert await read(tier, record, location) == b.payload
            except CorruptBlockError:
                continue
            found.add(position[record.block_hash])
    finally:
        await tier.close()
    return found, tier


def change(path: Path, offset: int, edit: Callable[[bytes], bytes], size: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(size)
        file.seek(offset)
        file.write(edit(before))


def flip(raw: bytes) -> bytes:
    return bytes([raw[0] ^ 0x10]) + raw[1:]


async def test_a_flipped_payload_bit_is_a_miss_of_that_block_only(tmp_path) -> None:
    blocks = [block(i) for i in range(4)]
    at = await stored(tmp_path, blocks)
    change(segment_path(tmp_path, SegmentId(0)), at[1].offset + PAGE_BYTES + 777, flip)
    found, _ = await survivors(tmp_path, blocks)
    assert found == {0, 2, 3}


@pytest.mark.parametrize("where", [0, 8, 16, 24, 32, 40, 48, 64, 72, 104, 136, 2000, 4090])
async def test_a_flipped_record_header_bit_is_a_miss_of_that_block_only(tmp_path, where) -> None:
    blocks = [block(i) for i in range(4)]
    at = await stored(tmp_path, blocks)
    change(segment_path(tmp_path, SegmentId(0)), at[1].offset + where, flip)
    found, _ = await survivors(tmp_path, blocks)
    assert found == {0, 2, 3}


@pytest.mark.parametrize("where", [0, 8, 12, 16, 24, 32, 4090])
async def test_a_flipped_segment_header_bit_loses_nothing_and_is_repaired(tmp_path, where) -> None:
    blocks = chain("a", 8)
    await stored(tmp_path, blocks)
    path = segment_path(tmp_path, SegmentId(0))
    intact = path.read_bytes()
    change(path, where, flip)
    found, tier = await survivors(tmp_path, blocks)
    assert found == set(range(8))
    assert any("header page is unusable" in p for p in tier.report.problems)
    assert path.read_bytes() == intact
    _, tier = await survivors(tmp_path, blocks)
    assert tier.report.problems == ()


async def test_a_missing_segment_drops_its_blocks_and_their_descendants(tmp_path) -> None:
    blocks = [*chain("a", 7), *(block(i) for i in range(5))]  # segment 1 has a-5, a-6, 0, 1, 2
    await stored(tmp_path, blocks)
    segment_path(tmp_path, SegmentId(0)).unlink()
    found, tier = await survivors(tmp_path, blocks)
    assert found == {7, 8, 9, 10, 11}
    assert tier.report.kept_count == 5
    assert tier.report.dropped_count == 7
    assert any("had no usable file" in p for p in tier.report.problems)
    assert tier.segments()[0].state == "free"
    assert tier.segments()[0].generation == 2
    assert segment_path(tmp_path, SegmentId(0)).stat().st_size == SEGMENT_BYTES


@pytest.mark.parametrize("size", [0, 100, SEGMENT_BYTES - PAGE_BYTES, SEGMENT_BYTES + PAGE_BYTES])
async def test_a_segment_of_the_wrong_size_is_made_anew(tmp_path, size) -> None:
    blocks = [block(i) for i in range(7)]
    await stored(tmp_path, blocks)
    with segment_path(tmp_path, SegmentId(0)).open("r+b") as file:
        file.truncate(size)
    found, tier = await survivors(tmp_path, blocks)
    assert found == {5, 6}
    assert any(f"its file had {size} bytes" in p for p in tier.report.problems)
    sizes = {f.stat().st_size for f in (tmp_path / "segments").iterdir()}
    assert sizes == {SEGMENT_BYTES}


async def test_segments_that_changed_places_are_not_believed(tmp_path) -> None:
    blocks = [block(i) for i in range(12)]
    await stored(tmp_path, blocks)
    first, second = (segment_path(tmp_path, SegmentId(i)) for i in (0, 1))
    spare = tmp_path / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    found, _ = await survivors(tmp_path, blocks)
    assert found == {10, 11}


async def test_a_segment_restored_from_an_older_copy_is_not_believed(tmp_path) -> None:
    blocks = [block(i) for i in range(20)]
    await stored(tmp_path, blocks)
    path = segment_path(tmp_path, SegmentId(0))
    old = path.read_bytes()
    tier = reopen(tmp_path)
    await tier.forget([b.hash for b in blocks[:5]])
    await tier.recycle(SegmentId(0))
    again = [block(f"again {i}") for i in range(10)]
    placed = await append(tier, again)
    assert placed[0].segment_id == 0
    await tier.close()
    path.write_bytes(old)
    everything = blocks + again
    in_old = {20 + i for i, x in enumerate(placed) if x.segment_id == 0}
    found, tier = await survivors(tmp_path, everything)
    assert found == set(range(5, 30)) - in_old
    assert any("older than the index" in p for p in tier.report.problems)
    assert tier.segments()[0].generation == 3


async def test_without_an_index_every_block_is_found_by_its_header(tmp_path) -> None:
    blocks = chain("a", 13)
    await stored(tmp_path, blocks)
    shutil.rmtree(tmp_path / "index")
    found, tier = await survivors(tmp_path, blocks)
    assert found == set(range(13))
    assert any("index is rebuilt" in p for p in tier.report.problems)
    assert [s.state for s in tier.segments()][:3] == ["sealed", "sealed", "open"]
    found, tier = await survivors(tmp_path, blocks)
    assert (found, tier.report.problems) == (set(range(13)), ())


async def test_without_an_index_half_a_record_at_the_end_is_not_kept(tmp_path) -> None:
    blocks = [block(i) for i in range(7)]
    at = await stored(tmp_path, blocks)
    shutil.rmtree(tmp_path / "index")
    change(segment_path(tmp_path, SegmentId(1)), at[6].offset + 2 * PAGE_BYTES, flip)
    found, tier = await survivors(tmp_path, blocks)
    assert found == set(range(6))
    assert tier.report.kept_count == 6, "not even reported as there"


async def test_without_an_index_the_newer_of_two_copies_counts(tmp_path) -> None:
    blocks = [block(i) for i in range(6)]
    tier = reopen(tmp_path)
    at = await append(tier, blocks)
    (moved,) = await tier.relog([(blocks[0].record, at[0])])
    await tier.close()
    shutil.rmtree(tmp_path / "index")
    tier = reopen(tmp_path)
    assert dict(tier.recovered())[blocks[0].record] == moved
    await tier.close()


async def test_a_damaged_index_is_rebuilt(tmp_path) -> None:
    blocks = chain("a", 8)
    await stored(tmp_path, blocks)
    tables = list((tmp_path / "index").glob("*.sst"))
    assert tables, "closing flushes the index into a table"
    for table in tables:
        change(table, 40, flip)
    found, tier = await survivors(tmp_path, blocks)
    assert found == set(range(8))
    assert any("index is rebuilt" in p for p in tier.report.problems)


async def test_an_index_of_garbage_is_rebuilt(tmp_path) -> None:
    blocks = chain("a", 8)
    await stored(tmp_path, blocks)
    (tmp_path / "index" / "CURRENT").write_text("nonsense")
    found, _ = await survivors(tmp_path, blocks)
    assert found == set(range(8))


def index_of(directory: Path) -> rocksdict.Rdict:
    return rocksdict.Rdict(str(directory / "index"), rocksdict.Options(raw_mode=True))


async def test_a_damaged_index_row_costs_that_block_and_its_descendants(tmp_path) -> None:
    blocks = [*chain("a", 3), block("b")]
    await stored(tmp_path, blocks)
    index = index_of(tmp_path)
    key = b"b" + blocks[1].hash
    index[key] = flip(index[key])
    index.close()
    found, tier = await survivors(tmp_path, blocks)
    assert found == {0, 3}
    assert tier.report.dropped_count == 2
    assert any("1 index rows were damaged" in p for p in tier.report.problems)
    found, tier = await survivors(tmp_path, blocks)
    assert (found, tier.report.problems) == ({0, 3}, ())


@pytest.mark.parametrize("key", [b"m", b"s\0\0\0\1"])
async def test_a_damaged_segment_or_meta_row_rebuilds_the_index(tmp_path, key) -> None:
    blocks = chain("a", 8)
    await stored(tmp_path, blocks)
    index = index_of(tmp_path)
    index[key] = flip(index[key])
    index.close()
    found, _ = await survivors(tmp_path, blocks)
    assert found == set(range(8))


async def test_an_index_row_that_points_elsewhere_never_gives_another_block(tmp_path) -> None:
    """The whole row of one block under the other's key: right checksum, wrong key."""
    blocks = [block("a"), block("b")]
    await stored(tmp_path, blocks)
    index = index_of(tmp_path)
    index[b"b" + blocks[0].hash] = index[b"b" + blocks[1].hash]
    index.close()
    found, _ = await survivors(tmp_path, blocks)
    assert found == {1}


async def test_records_behind_the_known_tail_are_repaired_if_whole(tmp_path) -> None:
    """An append that a crash stopped between its data and its index row."""
    blocks = chain("a", 2)
    at = await stored(tmp_path, blocks)
    path = segment_path(tmp_path, SegmentId(0))
    before = tmp_path.parent / "before"
    shutil.copytree(tmp_path / "index", before)
    more = [*chain("a", 5)[2:], block("lost parent", parent=block("nowhere").hash)]
    tier = reopen(tmp_path)
    # The index is from before this open, so the numbers of this append are higher than it knows.
    await append(tier, more[:2])
    await tier.close()
    shutil.rmtree(tmp_path / "index")
    before.rename(tmp_path / "index")
    found, tier = await survivors(tmp_path, blocks + more)
    assert found == {0, 1, 2, 3}
    assert (tier.report.repaired_count, tier.report.kept_count) == (2, 4)
    assert at[0].offset == PAGE_BYTES
    assert path.stat().st_size == SEGMENT_BYTES


@pytest.mark.parametrize("page", [0, 1, 2])
async def test_a_torn_tail_is_cut_at_the_last_whole_record(tmp_path, page) -> None:
    blocks = chain("a", 4)
    await stored(tmp_path, blocks[:1])
    before = tmp_path.parent / "before"
    shutil.copytree(tmp_path / "index", before)
    at = await stored(tmp_path, blocks[1:])
    shutil.rmtree(tmp_path / "index")
    before.rename(tmp_path / "index")
    torn = at[1].offset + page * PAGE_BYTES
    change(segment_path(tmp_path, SegmentId(0)), torn, lambda raw: bytes(len(raw)), PAGE_BYTES)
    found, tier = await survivors(tmp_path, blocks)
    assert found == {0, 1}, "block 3 is whole, but behind a hole nothing is believed"
    assert tier.report.repaired_count == 1
    # What is appended now overwrites the torn record; the whole one behind it stays out.
    new = block("new")
    await stored(tmp_path, [new])
    found, tier = await survivors(tmp_path, [*blocks, new])
    assert found == {0, 1, 4}


async def test_a_payload_that_looks_like_a_record_is_never_taken_for_one(tmp_path) -> None:
    """A client stores forged headers that fit place and generation; the seed it cannot know."""
    first = block("first")
    (at,) = await stored(tmp_path, [first])
    path = segment_path(tmp_path, SegmentId(0))
    header = parse_segment_header(memoryview(path.read_bytes()[:PAGE_BYTES]), SegmentId(0))
    assert header is not None
    raw = memoryview(path.read_bytes())
    genuine = parse_record_header(raw[at.offset : at.offset + PAGE_BYTES], header, at.offset)
    tail = at.offset + 3 * PAGE_BYTES
    victim = block("victim")
    forged = genuine._replace(
        record=victim.record,
        location=at._replace(offset=tail, checksum=victim.record.checksum),
        sequence=2**60,
    )
    for seed in (0, 1, 2**63):
        change(path, tail, lambda _, s=seed: pack_record_header(forged, s) + victim.payload)
        found, tier = await survivors(tmp_path, [first, victim])
        assert found == {0}
        assert tier.report.repaired_count == 0
    change(path, tail, lambda _: pack_record_header(forged, header.seed) + victim.payload)
    found, _ = await survivors(tmp_path, [first, victim])
    assert found == {0, 1}, "with the seed it would have been taken: the test does test it"


async def test_a_segment_of_a_newer_format_is_refused(tmp_path) -> None:
    await stored(tmp_path, [block("a")])
    page = bytearray(pack_segment_header(SegmentHeader(SegmentId(0), 1, SEGMENT_BYTES, 5)))
    struct.pack_into("<I", page, 8, FORMAT_VERSION + 1)
    struct.pack_into("<Q", page, 4088, xxhash.xxh3_64_intdigest(bytes(page[:4088])))
    change(segment_path(tmp_path, SegmentId(0)), 0, lambda _: bytes(page))
    with pytest.raises(FormatTooNewError, match="upgrade kvtier"):
        reopen(tmp_path)
