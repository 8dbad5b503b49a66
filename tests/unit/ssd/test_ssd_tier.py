"""What an owner of the SSD tier can rely on: append, read, forget, relog, recycle, reopen."""

import asyncio
import shutil

import pytest

from storage.errors import (
    BlockTooLargeError,
    CapacityError,
    CorruptBlockError,
    SegmentsFullError,
    TierIOError,
)
from storage.ssd.files import aligned_buffer
from storage.ssd.format import segment_path
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId, rounded
from tests.ssd.blocks import (
    CAPACITY_BYTES,
    SEGMENT_BYTES,
    append,
    block,
    chain,
    read,
)

# A block of 5000 bytes takes 3 of a segment's 16 pages, and one page is the header: 5 fit.
BLOCKS_PER_SEGMENT = 5
SEGMENT_COUNT = CAPACITY_BYTES // SEGMENT_BYTES


def states(tier: SsdTier) -> list[str]:
    return [s.state for s in tier.segments()]


async def test_blocks_come_back_as_they_were(open_tier) -> None:
    tier = open_tier()
    blocks = [*chain("a", 3), block("page", payload_bytes=4096), block("one", payload_bytes=1)]
    locations = await append(tier, blocks)
    for b, location in zip(blocks, locations, strict=True):
        assert await read(tier, b.record, location) == b.payload


async def test_appended_blocks_are_there_after_reopening_parents_first(open_tier) -> None:
    tier = open_tier()
    blocks = chain("a", 12)
    # Re-logged parents lie behind their children: the order must not be by place.
    locations = await append(tier, blocks)
    pairs = [(b.record, x) for b, x in zip(blocks, locations, strict=True)]
    locations[:2] = await tier.relog(pairs[:2])
    await tier.close()
    again = open_tier()
    assert again.report.kept_count == 12
    assert again.report.kept_bytes == 12 * 5000
    assert (again.report.dropped_count, again.report.repaired_count) == (0, 0)
    assert again.report.problems == ()
    found = list(again.recovered())
    assert found == [(b.record, at) for b, at in zip(blocks, locations, strict=True)]
    for b, (record, location) in zip(blocks, found, strict=True):
        assert await read(again, record, location) == b.payload


async def test_recovered_blocks_are_handed_over_once(open_tier) -> None:
    await append(tier := open_tier(), chain("a", 1))
    await tier.close()
    again = open_tier()
    assert len(list(again.recovered())) == 1
    assert list(again.recovered()) == []


async def test_a_batch_spans_segments_and_seals_the_full_one(open_tier) -> None:
    tier = open_tier()
    blocks = chain("a", BLOCKS_PER_SEGMENT + 2)
    locations = await append(tier, blocks)
    assert [x.segment_id for x in locations] == [0] * 5 + [1] * 2
    assert states(tier) == ["sealed", "open", *["free"] * 4]
    assert tier.free_segment_count == 4
    tier.check_integrity()


async def test_a_full_tier_takes_nothing_of_a_batch(open_tier) -> None:
    tier = open_tier()
    await append(tier, chain("a", BLOCKS_PER_SEGMENT * SEGMENT_COUNT - 1))
    before = tier.stats(), tier.segments()
    with pytest.raises(SegmentsFullError, match="recycle one first"):
        await append(tier, chain("b", 2))
    assert (tier.stats(), tier.segments()) == before
    assert len(await append(tier, chain("b", 1))) == 1, "one block still fits"


async def test_segment_files_never_pass_the_capacity(open_tier, tmp_path) -> None:
    tier = open_tier(CAPACITY_BYTES + SEGMENT_BYTES - 1)
    await append(tier, chain("a", BLOCKS_PER_SEGMENT * SEGMENT_COUNT))
    files = list((tmp_path / "ssd" / "segments").iterdir())
    assert sum(f.stat().st_size for f in files) == CAPACITY_BYTES
    assert tier.stats().capacity_bytes == CAPACITY_BYTES
    assert tier.stats().used_bytes == CAPACITY_BYTES


async def test_a_recycled_segment_is_written_under_the_next_generation(open_tier) -> None:
    tier = open_tier()
    old = chain("old", BLOCKS_PER_SEGMENT + 1)
    locations = await append(tier, old)
    await tier.forget([b.hash for b in old[:BLOCKS_PER_SEGMENT]])
    await tier.recycle(SegmentId(0))
    assert states(tier)[0] == "free"
    assert tier.segments()[0].generation == 2
    with pytest.raises(CorruptBlockError, match="recycled"):
        await read(tier, old[0].record, locations[0])
    new = chain("new", BLOCKS_PER_SEGMENT * (SEGMENT_COUNT - 1) + 4)
    placed = await append(tier, new)
    reused = [x for x in placed if x.segment_id == 0]
    assert {x.generation for x in reused} == {2}
    with pytest.raises(CorruptBlockError):
        await read(tier, old[0].record, locations[0])


async def test_stale_records_of_a_recycled_segment_never_come_back(
    open_tier, env, tmp_path
) -> None:
    """Behind one new record lie four old ones, whole, aligned, and of the same seed."""
    env.refuse_direct = True  # no pre-writing, so the recycled segment is the next to be used
    env.seeds = [11, 22, 11]
    tier = open_tier()
    old = chain("old", BLOCKS_PER_SEGMENT)
    await append(tier, old)
    await append(tier, [block(f"segment 1, {i}") for i in range(BLOCKS_PER_SEGMENT)])
    await tier.forget([b.hash for b in old])
    await tier.recycle(SegmentId(0))
    new = block("new")
    (location,) = await append(tier, [new])
    assert env.seeds == []
    assert (location.segment_id, location.generation) == (0, 2)
    with pytest.raises(CorruptBlockError):
        await read(tier, old[1].record, location._replace(offset=4 * PAGE_BYTES))
    await tier.close()

    again = open_tier()
    assert again.report.repaired_count == 0
    kept = {record.block_hash for record, _ in again.recovered()}
    assert new.hash in kept
    assert kept.isdisjoint(b.hash for b in old)
    await again.close()
    shutil.rmtree(tmp_path / "ssd" / "index")
    rebuilt = open_tier()
    kept = {record.block_hash for record, _ in rebuilt.recovered()}
    assert new.hash in kept
    assert kept.isdisjoint(b.hash for b in old), "a scan by headers must not take old ones either"


async def test_forgotten_blocks_stay_forgotten(open_tier) -> None:
    tier = open_tier()
    blocks = [block(i) for i in range(3)]
    await append(tier, blocks)
    await tier.forget([blocks[2].hash, block("unknown").hash])
    await tier.close()
    again = open_tier()
    assert {r.block_hash for r, _ in again.recovered()} == {b.hash for b in blocks[:2]}
    assert again.report.repaired_count == 0, "the last record lies before the durable tail"


async def test_only_sealed_segments_are_recycled(open_tier) -> None:
    tier = open_tier()
    await append(tier, chain("a", 1))
    for segment_id in (0, 1, 99):
        with pytest.raises(ValueError, match="not sealed"):
            await tier.recycle(SegmentId(segment_id))


async def test_relogged_blocks_move_and_corrupt_ones_do_not(open_tier, tmp_path) -> None:
    tier = open_tier()
    blocks = chain("a", 3)
    locations = await append(tier, blocks)
    with segment_path(tmp_path / "ssd", SegmentId(0)).open("r+b") as file:
        file.seek(locations[1].offset + PAGE_BYTES)
        file.write(b"\0\0\0\0")
    moved = await tier.relog([(b.record, x) for b, x in zip(blocks, locations, strict=True)])
    assert moved[1] is None
    for i in (0, 2):
        assert moved[i] != locations[i]
        assert await read(tier, blocks[i].record, moved[i]) == blocks[i].payload


async def test_a_relog_that_does_not_fit_writes_nothing(open_tier) -> None:
    tier = open_tier()
    blocks = chain("a", BLOCKS_PER_SEGMENT * SEGMENT_COUNT - 2)
    locations = await append(tier, blocks)
    written = tier.stats().written_bytes
    with pytest.raises(SegmentsFullError):
        await tier.relog([(b.record, x) for b, x in zip(blocks[:3], locations[:3], strict=True)])
    assert tier.stats().written_bytes == written


async def test_reading_another_block_at_a_place_is_refused(open_tier) -> None:
    tier = open_tier()
    first, second = chain("a", 2)
    at_first, _ = await append(tier, [first, second])
    into = aligned_buffer(rounded(5000))
    with pytest.raises(CorruptBlockError, match="another block"):
        await tier.read(second.record, at_first, into)


async def test_memory_that_direct_io_cannot_use_is_refused(open_tier) -> None:
    tier = open_tier()
    b = block("a")
    unaligned = aligned_buffer(rounded(5000) + PAGE_BYTES)[8 : rounded(5000) + 8]
    with pytest.raises(ValueError, match="page-aligned"):
        await tier.append([(b.record, unaligned)])
    with pytest.raises(ValueError, match="a view of 8192 bytes"):
        await tier.append([(b.record, aligned_buffer(PAGE_BYTES))])
    (location,) = await append(tier, [b])
    with pytest.raises(ValueError, match="page-aligned"):
        await tier.read(b.record, location, unaligned)


async def test_a_block_larger_than_a_segment_is_refused(open_tier) -> None:
    tier = open_tier()
    assert tier.record_bytes(SEGMENT_BYTES - 2 * PAGE_BYTES) == SEGMENT_BYTES - PAGE_BYTES
    await append(tier, [block("fits", payload_bytes=SEGMENT_BYTES - 2 * PAGE_BYTES)])
    with pytest.raises(BlockTooLargeError, match="make segments larger"):
        await append(tier, [block("large", payload_bytes=SEGMENT_BYTES - 2 * PAGE_BYTES + 1)])


async def test_a_larger_capacity_adds_segments_and_keeps_all_blocks(open_tier) -> None:
    tier = open_tier()
    await append(tier, chain("a", 10))
    await tier.close()
    again = open_tier(CAPACITY_BYTES + 3 * SEGMENT_BYTES)
    assert again.report.kept_count == 10
    assert len(again.segments()) == SEGMENT_COUNT + 3
    assert again.free_segment_count == SEGMENT_COUNT + 1


async def test_a_smaller_capacity_drops_removed_segments_and_who_descends_from_them(
    open_tier, tmp_path
) -> None:
    tier = open_tier()
    roots = [block(f"root {i}") for i in range(BLOCKS_PER_SEGMENT * SEGMENT_COUNT - 5)]
    await append(tier, roots)
    await tier.forget([b.hash for b in roots[:5]])
    await tier.recycle(SegmentId(0))
    # The last root lies in segment 4, its child in segment 0, which stays.
    child = block("child", parent=roots[-1].hash)
    (location,) = await append(tier, [child])
    assert location.segment_id == 0
    await tier.close()

    again = open_tier(4 * SEGMENT_BYTES)
    kept = {record.block_hash for record, _ in again.recovered()}
    assert kept == {b.hash for b in roots[5:20]}
    assert again.report.dropped_count == 5 + 1
    assert any("2 segments were removed" in p for p in again.report.problems)
    assert any("1 blocks had lost an ancestor" in p for p in again.report.problems)
    files = list((tmp_path / "ssd" / "segments").iterdir())
    assert sum(f.stat().st_size for f in files) == 4 * SEGMENT_BYTES
    await again.close()
    assert open_tier(4 * SEGMENT_BYTES).report.problems == (), "told once, then settled"


@pytest.mark.parametrize(
    ("capacity", "segment", "threads", "words"),
    [
        (3 * SEGMENT_BYTES, SEGMENT_BYTES, 1, "needs 4 to"),
        (CAPACITY_BYTES, 4096, 1, "at least two"),
        (CAPACITY_BYTES, 10_000, 1, "multiple of 4096"),
        (0, SEGMENT_BYTES, 1, "needs 4 to"),
        (2**60, SEGMENT_BYTES, 1, "needs 4 to"),
        (CAPACITY_BYTES, SEGMENT_BYTES, 0, "reader_threads"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, capacity, segment, threads, words) -> None:
    with pytest.raises(CapacityError, match=words):
        SsdTier.open(
            tmp_path, capacity_bytes=capacity, segment_bytes=segment, reader_threads=threads
        )
    assert list(tmp_path.iterdir()) == []


async def test_another_segment_size_is_refused_and_loses_nothing(open_tier, tmp_path) -> None:
    tier = open_tier()
    await append(tier, chain("a", 1))
    await tier.close()
    with pytest.raises(CapacityError, match="set segment_bytes back"):
        SsdTier.open(tmp_path / "ssd", capacity_bytes=1 << 20, segment_bytes=8 * PAGE_BYTES)
    assert open_tier().report.kept_count == 1


async def test_without_direct_io_the_tier_works_and_says_so(open_tier, env) -> None:
    env.refuse_direct = True
    tier = open_tier()
    assert tier.io_mode == "buffered"
    blocks = chain("a", 8)
    locations = await append(tier, blocks)
    for b, location in zip(blocks, locations, strict=True):
        assert await read(tier, b.record, location) == b.payload


async def test_short_writes_are_continued(open_tier, env) -> None:
    tier = open_tier()
    env.short_write_bytes = PAGE_BYTES
    blocks = chain("a", 8, payload_bytes=9000)
    locations = await append(tier, blocks)
    for b, location in zip(blocks, locations, strict=True):
        assert await read(tier, b.record, location) == b.payload


async def test_an_append_to_the_same_place_in_many_tasks_keeps_every_block(open_tier) -> None:
    tier = open_tier()
    blocks = [block(i) for i in range(20)]
    placed = await asyncio.gather(*(append(tier, [b]) for b in blocks))
    payloads = await asyncio.gather(
        *(read(tier, b.record, x[0]) for b, x in zip(blocks, placed, strict=True))
    )
    assert payloads == [b.payload for b in blocks]


async def test_a_cancelled_call_returns_only_when_its_memory_is_free(open_tier) -> None:
    tier = open_tier()
    b = block("a")
    task = asyncio.create_task(append(tier, [b]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Whatever the cancelled append did, it has ended: the next one sees its outcome.
    (location,) = await append(tier, [block("b")])
    assert location.offset in (PAGE_BYTES, 4 * PAGE_BYTES)
    tier.check_integrity()


async def test_a_closed_tier_refuses_and_closes_again_quietly(open_tier) -> None:
    tier = open_tier()
    await tier.close()
    await tier.close()
    with pytest.raises(TierIOError, match="closed"):
        await append(tier, chain("a", 1))
    with pytest.raises(TierIOError, match="closed"):
        await tier.forget([block("a").hash])


async def test_stats_count_what_was_moved(open_tier) -> None:
    tier = open_tier()
    blocks = chain("a", 2)
    locations = await append(tier, blocks)
    await read(tier, blocks[0].record, locations[0])
    stats = tier.stats()
    assert stats.written_bytes == stats.used_bytes == PAGE_BYTES + 2 * 3 * PAGE_BYTES
    assert stats.read_bytes == 3 * PAGE_BYTES
    assert stats.index_bytes > 0


async def test_free_segments_are_prewritten_once_in_their_life(open_tier) -> None:
    tier = open_tier()
    if tier.io_mode != "direct":
        pytest.skip("pre-writing is for direct I/O")
    await append(tier, chain("a", 1))
    while tier.stats().prewritten_bytes < 2 * (SEGMENT_BYTES - PAGE_BYTES):
        await asyncio.sleep(0)
    await append(tier, chain("b", BLOCKS_PER_SEGMENT - 1))
    await tier.close()
    again = open_tier()
    await append(again, chain("c", 1))
    assert again.segments()[1].state == "open", "the ready one is taken first"
    while again.stats().prewritten_bytes < SEGMENT_BYTES - PAGE_BYTES:
        await asyncio.sleep(0)
    await append(again, chain("d", 1))
    await again.close()
    assert again.stats().prewritten_bytes == SEGMENT_BYTES - PAGE_BYTES


async def test_blocks_behind_stranded_ones_survive_a_second_loss_of_the_index(
    open_tier, tmp_path
) -> None:
    """A number that was given to a dropped record is not given again."""
    tier = open_tier()
    parents = chain("parents", BLOCKS_PER_SEGMENT)
    await append(tier, parents)  # fills segment 0
    await tier.close()
    again = open_tier()  # the next life numbers its records higher
    await append(again, [block("child", parent=parents[-1].hash)])
    await again.recycle(SegmentId(0))
    for _ in range(2):
        await again.close()
        shutil.rmtree(tmp_path / "ssd" / "index")
        again = open_tier()
        if again.report.kept_count == 0:
            later = block("later")
            await append(again, [later])
    assert [r.block_hash for r, _ in again.recovered()] == [later.hash]
