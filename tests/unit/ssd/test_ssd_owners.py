"""Whose a block is goes with it through every start, or the block does not."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import rocksdict
import xxhash

from storage.errors import TierIOError
from storage.ssd import owner_rows
from storage.ssd.format import (
    OWNER_BYTES_MAX,
    BadPageError,
    SegmentHeader,
    pack_record_header,
    parse_record_header,
    write_record_header,
)
from storage.ssd.index import IndexBatch, SsdIndex
from storage.ssd.owner_rows import OwnerNumbers, owner_entry, owner_key
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import Block, append, chain, read
from tests.unit.ssd.test_ssd_format import OFFSET, SEGMENT, header

Owners = dict[bytes, str]


async def append_owned(tier: SsdTier, blocks: Sequence[Block], owners: Sequence[str]) -> Any:
    return await tier.append([(b.record, b.view()) for b in blocks], (), owners)


def owners_of(tier: SsdTier) -> Owners:
    """Of every block that opening found."""
    found = tier.recovered()
    paths = [found.owners[number] for number in found.owner_row.tolist()]
    return dict(zip(found.hashes.tolist(), paths, strict=True))


async def reopened(tier: SsdTier, open_tier: Any) -> SsdTier:
    await tier.close()
    again: SsdTier = open_tier()
    return again


def rows(directory: Path) -> list[bytes]:
    """Keys of the index that are owners'."""
    index = rocksdict.Rdict(str(directory / "index"), rocksdict.Options(raw_mode=True))
    found = [bytes(key) for key in index.keys() if bytes(key)[:1] == b"o"]  # noqa: SIM118
    index.close()
    return found


def test_the_bytes_of_owners_are_frozen() -> None:
    key, value = owner_entry(3, "acme/search")
    assert key.hex() == "6f00000003"
    assert value.hex() == b"acme/search".hex() + "cf2c837533b8f1d8"
    page = pack_record_header(header()._replace(owner="acme"), SEGMENT.seed)
    assert page[168:176] == b"\x04\0acme\0\0"
    plain = pack_record_header(header(), SEGMENT.seed)
    assert page[:168] == plain[:168]
    assert not any(plain[168:4088])


def test_a_page_that_held_a_longer_owner_keeps_nothing_of_it() -> None:
    page = memoryview(bytearray(PAGE_BYTES))
    for owner in ("acme/search/ann", "b", "", "é" * 769, "acme"):
        named = header()._replace(owner=owner)
        write_record_header(named, SEGMENT.seed, page)
        assert bytes(page) == pack_record_header(named, SEGMENT.seed)
        assert parse_record_header(page, SEGMENT, OFFSET) == named


@pytest.mark.parametrize("raw", [(OWNER_BYTES_MAX + 1).to_bytes(2, "little"), b"\x01\x00\xff"])
def test_a_record_whose_owner_is_none_is_refused(raw: bytes) -> None:
    """Sealed as it is: no reader trusts a length."""
    page = bytearray(pack_record_header(header(), SEGMENT.seed))
    page[168 : 168 + len(raw)] = raw
    page[4088:] = xxhash.xxh3_64_intdigest(page[:4088], SEGMENT.seed).to_bytes(8, "little")
    segment = SegmentHeader(SegmentId(3), 7, 1 << 20, seed=0xABCDEF)
    with pytest.raises(BadPageError, match="owner"):
        parse_record_header(memoryview(page), segment, OFFSET)


async def test_owners_come_back_with_their_blocks_and_others_have_none(open_tier: Any) -> None:
    tier = open_tier()
    a, b, c, d = chain("a", 4)
    await append_owned(tier, [a, b], ["", "acme"])
    await append_owned(tier, [c], ["acme/search"])
    await append(tier, [d])
    tier = await reopened(tier, open_tier)
    expected = {a.hash: "", b.hash: "acme", c.hash: "acme/search", d.hash: ""}
    assert owners_of(tier) == expected
    # As often as it is opened; also of what is written after.
    (e,) = chain("e", 1)
    (at,) = await append_owned(tier, [e], ["acme"])
    assert await read(tier, e.record, at) == e.payload
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == expected | {e.hash: "acme"}


async def test_where_nothing_has_an_owner_there_are_no_rows(open_tier: Any, tmp_path: Path) -> None:
    tier = open_tier()
    await append(tier, chain("a", 3))
    await tier.close()
    assert rows(tmp_path / "ssd") == []


async def test_without_the_index_each_record_says_whose_it_is(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_owned(tier, [a, b, c], ["", "acme", "acme/search"])
    await tier.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    tier = open_tier()
    assert owners_of(tier) == {a.hash: "", b.hash: "acme", c.hash: "acme/search"}
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == {a.hash: "", b.hash: "acme", c.hash: "acme/search"}


async def test_what_the_index_never_heard_of_is_taken_in_with_its_owner(
    open_tier: Any, tmp_path: Path
) -> None:
    path = tmp_path / "ssd"
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_owned(tier, [a], ["acme"])
    await tier.close()
    shutil.copytree(path / "index", tmp_path / "before")
    tier = open_tier()
    await append_owned(tier, [b, c], ["acme", "beta"])
    await tier.close()
    shutil.rmtree(path / "index")
    (tmp_path / "before").rename(path / "index")
    tier = open_tier()
    assert tier.report.repaired_count == 2
    assert owners_of(tier) == {a.hash: "acme", b.hash: "acme", c.hash: "beta"}
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == {a.hash: "acme", b.hash: "acme", c.hash: "beta"}


async def test_a_relogged_block_keeps_its_owner(open_tier: Any, tmp_path: Path) -> None:
    tier = open_tier()
    a, b = chain("a", 2)
    locations = await append_owned(tier, [a, b], ["acme", ""])
    moved = await tier.relog(list(zip([a.record, b.record], locations, strict=True)))
    assert moved[0] != locations[0]
    await tier.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    assert owners_of(open_tier()) == {a.hash: "acme", b.hash: ""}


async def test_owners_of_nothing_are_forgotten_and_their_numbers_given_again(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_owned(tier, [a, b, c], ["acme", "beta", "gamma"])
    await tier.forget([c.hash, b.hash])
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == {a.hash: "acme"}
    await tier.close()
    assert rows(tmp_path / "ssd") == [owner_key(1)]
    tier = open_tier()
    await append_owned(tier, [b, c], ["delta", "beta"])
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == {a.hash: "acme", b.hash: "delta", c.hash: "beta"}


async def test_blocks_whose_owners_row_is_damaged_are_dropped(
    open_tier: Any, tmp_path: Path
) -> None:
    """They would be in nobody's accounts, and a purge of their owner would not find them."""
    tier = open_tier()
    a, b = chain("a", 2)
    await append_owned(tier, [a, b], ["acme", "beta"])
    await tier.close()
    index = SsdIndex(tmp_path / "ssd" / "index")
    key, value = owner_entry(2, "beta")
    index._db[key] = value[:-1] + bytes([value[-1] ^ 1])
    index.apply(IndexBatch())
    index.close()
    tier = open_tier()
    assert owners_of(tier) == {a.hash: "acme"}
    assert any("owner" in problem for problem in tier.report.problems)
    # Its number is given again, and the damaged row with it.
    await append_owned(tier, [b], ["gamma"])
    tier = await reopened(tier, open_tier)
    assert owners_of(tier) == {a.hash: "acme", b.hash: "gamma"}


def test_numbers_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_rows, "OWNER_NUMBER_MAX", 3)
    numbers = OwnerNumbers({2: "acme"})
    assert [numbers.number(owner) for owner in ("", "acme", "beta", "gamma")] == [0, 2, 1, 3]
    with pytest.raises(TierIOError, match="open it again"):
        numbers.number("delta")
    assert numbers.take_new() == [(1, "beta"), (3, "gamma")]
    assert numbers.take_new() == []
