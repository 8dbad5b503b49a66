"""Until when a block may be used goes with it through every start, or the block does not."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rocksdict

from storage.ssd.expiry_rows import expiry_entry
from storage.ssd.index import IndexBatch, SsdIndex
from storage.ssd.tier import SsdTier
from storage.tier import NEVER
from tests.ssd.blocks import Block, append, chain, read

Ends = dict[bytes, int]


async def append_ending(tier: SsdTier, blocks: Sequence[Block], ends: Sequence[int]) -> Any:
    return await tier.append([(b.record, b.view()) for b in blocks], ends)


def ends_of(tier: SsdTier) -> Ends:
    """Of every block that opening found."""
    found = tier.recovered()
    return dict(zip(found.hashes.tolist(), found.expire_second.tolist(), strict=True))


async def reopened(tier: SsdTier, open_tier: Any) -> SsdTier:
    await tier.close()
    again: SsdTier = open_tier()
    return again


def rows(directory: Path) -> set[bytes]:
    """First bytes of the index's keys."""
    index = rocksdict.Rdict(str(directory / "index"), rocksdict.Options(raw_mode=True))
    found = {bytes(key)[:1] for key in index.keys()}  # noqa: SIM118
    index.close()
    return found


def test_the_bytes_of_an_expiry_row_are_frozen() -> None:
    key, value = expiry_entry(bytes(range(32)), 1_800_000_000)
    assert key == b"e" + bytes(range(32))
    assert value.hex() == "00d2496b00000000" + "ffeaf8cbd4efc1ac"


async def test_ends_come_back_with_their_blocks_and_others_have_none(open_tier: Any) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_ending(tier, [a, b], [900, 800])
    await append(tier, [c])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: 900, b.hash: 800, c.hash: NEVER}


async def test_a_directory_where_nothing_ends_is_as_it_always_was(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    blocks = chain("a", 3)
    await append_ending(tier, blocks[:2], [NEVER, NEVER])
    await append(tier, blocks[2:])
    await tier.save_expiries([(blocks[0].hash, NEVER)])
    await tier.forget([blocks[2].hash])
    await tier.close()
    assert b"expiries" not in (tmp_path / "ssd" / "KVTIER-SSD").read_bytes()
    assert rows(tmp_path / "ssd") == {b"b", b"s", b"m"}


async def test_an_end_can_be_moved_and_taken_away(open_tier: Any) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_ending(tier, [a, b, c], [900, 900, NEVER])
    await tier.save_expiries([(a.hash, 1000), (b.hash, NEVER), (c.hash, 50)])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: 1000, b.hash: NEVER, c.hash: 50}


async def test_a_block_that_is_written_anew_has_its_own_end_and_not_the_old_one(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    a, b, c = chain("a", 3)
    await append_ending(tier, [a, b], [900, 900])
    await tier.forget([b.hash])
    await append(tier, [b])
    # One whose end was noted, and that never came.
    await tier.save_expiries([(c.hash, 70)])
    await append(tier, [c])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: 900, b.hash: NEVER, c.hash: NEVER}


async def test_ends_of_blocks_that_are_not_there_are_forgotten_at_the_next_start(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    (a,) = chain("a", 1)
    await tier.save_expiries([(a.hash, 70)])
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {}
    await tier.close()
    assert b"e" not in rows(tmp_path / "ssd")


async def test_a_relogged_block_keeps_its_end(open_tier: Any) -> None:
    tier = open_tier()
    a, b = chain("a", 2)
    locations = await append_ending(tier, [a, b], [900, NEVER])
    moved = await tier.relog(list(zip([a.record, b.record], locations, strict=True)))
    assert moved[0] != locations[0]
    assert await read(tier, a.record, moved[0]) == a.payload
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {a.hash: 900, b.hash: NEVER}


async def test_without_the_index_blocks_of_such_a_directory_are_dropped(
    open_tier: Any, tmp_path: Path
) -> None:
    tier = open_tier()
    blocks = chain("a", 3)
    await append_ending(tier, blocks, [NEVER, NEVER, 900])
    await tier.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    tier = open_tier()
    assert ends_of(tier) == {}
    assert any("expire" in problem for problem in tier.report.problems)
    # It works on, and knows what it is through the next loss too.
    again = chain("b", 2)
    locations = await append_ending(tier, again, [NEVER, NEVER])
    assert await read(tier, again[0].record, locations[0]) == again[0].payload
    tier = await reopened(tier, open_tier)
    assert ends_of(tier) == {b.hash: NEVER for b in again}
    await tier.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    assert ends_of(open_tier()) == {}


async def test_what_the_index_never_heard_of_is_not_taken_in(
    open_tier: Any, tmp_path: Path
) -> None:
    """A crash between the records and the index: nobody was told of them, nor of their end."""
    for ends, kept in (([NEVER, NEVER], 3), ([900, 900], 1)):
        path = tmp_path / f"{kept}"
        tier = open_tier(path=path)
        first, *blocks = chain(f"a {kept}", 3)
        await append_ending(tier, [first], ends[:1])
        before = path.with_suffix(".index")
        await asyncio.to_thread(shutil.copytree, path / "index", before)
        await append_ending(tier, blocks, ends)
        await tier.close()
        shutil.rmtree(path / "index")
        before.rename(path / "index")
        (path / "index" / "LOCK").touch()
        assert len(ends_of(open_tier(path=path))) == kept


async def test_a_damaged_end_is_long_over(open_tier: Any, tmp_path: Path) -> None:
    tier = open_tier()
    a, b = chain("a", 2)
    await append_ending(tier, [a, b], [900, 900])
    await tier.close()
    index = SsdIndex(tmp_path / "ssd" / "index")
    key, value = expiry_entry(b.hash, 900)
    index._db[key] = value[:-1] + bytes([value[-1] ^ 1])
    index.apply(IndexBatch())
    index.close()
    assert ends_of(open_tier()) == {a.hash: 900, b.hash: 0}
