"""Where prefix units end is kept with the blocks: in record and row at once, later in the row."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from storage.codec import Codec
from storage.ssd.block_rows import BLOCK_KEY, BlockRowReader, block_row, with_unit_end
from storage.ssd.format import pack_record_header, parse_record_header, write_record_header
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.ssd.blocks import Block, append, chain, read
from tests.unit.ssd.test_ssd_format import OFFSET, SEGMENT, header


async def append_ending(tier: SsdTier, blocks: Sequence[Block], ends: Collection[Any]) -> Any:
    owners = ["acme"] * len(blocks)
    return await tier.append([(b.record, b.view()) for b in blocks], (), owners, ends)


def ends_of(tier: SsdTier) -> dict[bytes, bool]:
    """Of every block that opening found; the owner came back as well."""
    found = tier.recovered()
    assert {found.owners[number] for number in found.owner_row.tolist()} <= {"", "acme"}
    assert not found.codec.any()
    return dict(zip(found.hashes.tolist(), found.unit_end.tolist(), strict=True))


async def reopened(tier: SsdTier, open_tier: Any) -> SsdTier:
    await tier.close()
    again: SsdTier = open_tier()
    return again


def test_the_bytes_of_marks_are_frozen() -> None:
    plain = pack_record_header(header(), SEGMENT.seed)
    page = pack_record_header(header()._replace(unit_end=True), SEGMENT.seed)
    assert (plain[4080], page[4080]) == (0, 1)
    assert page[:4080] == plain[:4080]
    assert page[4081:4088] == plain[4081:4088] == bytes(7)
    marked = header()._replace(unit_end=True, codec=Codec.ZSTD)
    name, value = block_row(marked, 0x030201)
    assert value[68:72] == bytes([0x08 | Codec.ZSTD, 1, 2, 3])
    _, bare = block_row(marked._replace(unit_end=False), 0x030201)
    assert bare[68:72] == bytes([Codec.ZSTD, 1, 2, 3])
    assert with_unit_end(name, bare) == value
    reader = BlockRowReader(1)
    reader.take([(BLOCK_KEY + name, value)])
    assert reader.damaged_hashes == []


def test_a_row_that_is_damaged_or_marked_is_left_alone() -> None:
    name, value = block_row(header())
    marked = with_unit_end(name, value)
    assert marked is not None
    assert with_unit_end(name, marked) is None
    assert with_unit_end(name[::-1], value) is None
    for position in (0, 68, len(value) - 1):
        bad = bytearray(value)
        bad[position] ^= 1
        assert with_unit_end(name, bytes(bad)) is None
    assert with_unit_end(name, value[:-1]) is None


def test_a_page_that_held_a_mark_keeps_nothing_of_it() -> None:
    page = memoryview(bytearray(PAGE_BYTES))
    for unit_end in (True, False, True):
        each = header()._replace(unit_end=unit_end)
        write_record_header(each, SEGMENT.seed, page)
        assert bytes(page) == pack_record_header(each, SEGMENT.seed)
        assert parse_record_header(page, SEGMENT, OFFSET) == each


async def test_marks_come_back_with_their_blocks(open_tier: Any, tmp_path: Path) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    (at, *_) = await append_ending(tier, [a, b, c], {b.hash})
    expected = {a.hash: False, b.hash: True, c.hash: False}
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == expected
    assert await read(tier, a.record, at) == a.payload
    await tier.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    tier = open_tier()
    assert ends_of(tier) == expected
    assert ends_of(await reopened(tier, open_tier)) == expected


async def test_a_late_mark_is_in_the_index_and_with_the_next_copy_in_the_record(
    open_tier: Any, tmp_path: Path
) -> None:
    index = tmp_path / "ssd" / "index"
    tier = open_tier()
    a, b, c = chain("a", 3)
    places = await append_ending(tier, [a, b, c], set())
    await tier.save_unit_ends([b.hash, chain("nowhere", 1)[0].hash])
    await tier.save_unit_ends([b.hash])
    await tier.save_unit_ends([])
    late = {a.hash: False, b.hash: True, c.hash: False}
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == late
    assert await read(tier, b.record, places[1]) == b.payload
    await tier.close()
    shutil.rmtree(index)
    tier = open_tier()
    assert not any(ends_of(tier).values()), "lost with the index"

    await tier.save_unit_ends([b.hash])
    await tier.relog([(a.record, places[0]), (b.record, places[1])], {b.hash})
    await tier.close()
    shutil.rmtree(index)
    tier = open_tier()
    assert ends_of(tier) == late


async def test_a_copy_keeps_the_mark_of_its_record(open_tier: Any, tmp_path: Path) -> None:
    tier = open_tier()
    a, b = chain("a", 2)
    places = await append_ending(tier, [a, b], {a.hash})
    await tier.relog(list(zip([a.record, b.record], places, strict=True)))
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: True, b.hash: False}


async def test_a_block_that_was_forgotten_comes_back_without(open_tier: Any) -> None:
    tier = open_tier()
    a, b = chain("a", 2)
    await append_ending(tier, [a, b], {b.hash})
    await tier.forget([b.hash])
    await tier.save_unit_ends([b.hash])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: False}
    await append(tier, [b])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: False, b.hash: False}
