"""Blocks under a codec: smaller records, the same bytes back, and stores that hold all of them."""

import asyncio
import shutil
from pathlib import Path

import pytest

from storage.codec import Codec
from storage.codec_choice import CodecSpeed, Speeds
from storage.errors import CapacityError, CorruptBlockError, StorageError, TierIOError
from storage.ssd.codec_selector import CODEC_SETTINGS, Placed
from storage.ssd.format import (
    parse_record_header,
    parse_segment_header,
    record_bytes,
    segment_path,
)
from storage.ssd.tier import SsdTier
from storage.tier import NO_PARENT, PAGE_BYTES, SegmentId, SsdLocation
from tests.ssd.blocks import (
    CAPACITY_BYTES,
    SEGMENT_BYTES,
    Block,
    append,
    block,
    read,
    soft_block,
)

PACKING = ["planes_lz4", "zstd"]


def opened(path: Path, codec: str = "none", **more: object) -> SsdTier:
    return SsdTier.open(
        path,
        capacity_bytes=CAPACITY_BYTES,
        segment_bytes=SEGMENT_BYTES,
        codec=codec,
        **more,  # type: ignore[arg-type]
    )


def codec_on_disk(path: Path, at: SsdLocation) -> Codec:
    raw = memoryview(segment_path(path, at.segment_id).read_bytes())
    segment = parse_segment_header(raw[:PAGE_BYTES], at.segment_id)
    assert segment is not None
    page = raw[at.offset : at.offset + PAGE_BYTES]
    return parse_record_header(page, segment, at.offset).codec


@pytest.mark.parametrize("codec", PACKING)
async def test_a_block_that_shrinks_takes_fewer_pages_and_comes_back(tmp_path, codec) -> None:
    tier = opened(tmp_path, codec)
    blocks = [soft_block(i, payload_bytes=n) for i, n in enumerate([5000, 7001, 20_000])]
    at = await append(tier, blocks)
    for b, x in zip(blocks, at, strict=True):
        assert record_bytes(x.stored_bytes) < record_bytes(x.payload_bytes)
        assert codec_on_disk(tmp_path, x).label == codec
        assert await read(tier, b.record, x) == b.payload
    assert tier.stats().written_bytes == PAGE_BYTES + sum(record_bytes(x.stored_bytes) for x in at)
    assert tier.stats().read_bytes == sum(record_bytes(x.stored_bytes) for x in at)
    await tier.close()


@pytest.mark.parametrize("codec", PACKING)
async def test_a_block_that_saves_no_page_is_stored_as_it_is(tmp_path, codec) -> None:
    tier = opened(tmp_path, codec)
    blocks = [block("noise"), soft_block("one page anyway", payload_bytes=4000)]
    for b, x in zip(blocks, await append(tier, blocks), strict=True):
        assert x.stored_bytes == x.payload_bytes
        assert codec_on_disk(tmp_path, x) is Codec.NONE
        assert await read(tier, b.record, x) == b.payload
    await tier.close()


async def test_a_store_of_all_codecs_reads_relogs_reopens_and_is_rebuilt(tmp_path) -> None:
    blocks: list[Block] = []
    at: list[SsdLocation] = []
    for codec in ["none", *PACKING, "none", *PACKING]:
        tier = opened(tmp_path, codec)
        parent = blocks[-1].hash if blocks else NO_PARENT
        blocks.append(soft_block(len(blocks), parent))
        at += await append(tier, blocks[-1:])
        await tier.close()
    assert len({codec_on_disk(tmp_path, x) for x in at}) == 3

    tier = opened(tmp_path, "none")
    moved = await tier.relog([(b.record, x) for b, x in zip(blocks, at, strict=True)])
    for x, y in zip(at, moved, strict=True):
        assert y is not None
        assert (y.segment_id, y.offset) != (x.segment_id, x.offset)
        assert y.stored_bytes == x.stored_bytes, "moved as it was stored"
        assert codec_on_disk(tmp_path, y) is codec_on_disk(tmp_path, x)
    await tier.close()
    for lost in (False, True):
        if lost:
            shutil.rmtree(tmp_path / "index")
        tier = opened(tmp_path)
        found = list(tier.recovered())
        assert found == [(b.record, y) for b, y in zip(blocks, moved, strict=True)]
        for b, (record, y) in zip(blocks, found, strict=True):
            assert await read(tier, record, y) == b.payload
        await tier.close()


@pytest.mark.parametrize("codec", PACKING)
async def test_damaged_stored_bytes_are_a_corrupt_block_and_stay_behind_in_a_relog(
    tmp_path, codec
) -> None:
    tier = opened(tmp_path, codec)
    b = soft_block("a", payload_bytes=20_000)
    (at,) = await append(tier, [b])
    path = segment_path(tmp_path, SegmentId(0))
    whole = path.read_bytes()
    start = at.offset + PAGE_BYTES
    for position in [*range(24), *range(24, at.stored_bytes, 997), at.stored_bytes - 1]:
        damaged = bytearray(whole)
        damaged[start + position] ^= 0x20
        path.write_bytes(damaged)
        with pytest.raises(CorruptBlockError):
            await read(tier, b.record, at)
    assert await tier.relog([(b.record, at)]) == [None]
    path.write_bytes(whole)
    assert await read(tier, b.record, at) == b.payload
    await tier.close()


async def test_more_blocks_fit_than_without_a_codec(tmp_path) -> None:
    tier = opened(tmp_path, "zstd")
    blocks = [soft_block(i) for i in range(7)]
    locations = await append(tier, blocks)
    assert {x.segment_id for x in locations} == {0}, "five would fit as they are"
    await tier.close()


def test_a_codec_of_another_name_is_refused(tmp_path) -> None:
    with pytest.raises(CapacityError, match="none, planes_lz4, zstd, auto"):
        opened(tmp_path, "gzip")
    assert list(tmp_path.iterdir()) == []
    assert CODEC_SETTINGS == ("none", "planes_lz4", "zstd", "auto")


class Measured:
    """Speeds as a test wants them; remembers what it was shown."""

    def __init__(self, disk: float) -> None:
        self.disk = disk
        self.error: StorageError | None = None
        self.shown: list[list[Placed]] = []

    def __call__(self, placed: list[Placed]) -> Speeds:
        self.shown.append(list(placed))
        if self.error is not None:
            raise self.error
        return Speeds(self.disk, [CodecSpeed(Codec.ZSTD, 1e9, 2e9, 1.5)])


async def chosen(tier: SsdTier, words: str) -> None:
    async with asyncio.timeout(20):
        while words not in tier.codec_choice.reason:
            await asyncio.sleep(0.001)


async def test_auto_measures_its_first_blocks_and_then_encodes(tmp_path) -> None:
    measured = Measured(disk=1e8)
    tier = opened(tmp_path, "auto", measure=measured)
    assert tier.codec_choice.codec is Codec.NONE
    first, second = soft_block("first"), soft_block("second")
    (at,) = await append(tier, [first])
    assert at.stored_bytes == at.payload_bytes
    await chosen(tier, "below the break-even of zstd")
    assert measured.shown == [[(first.record, at)]]
    (at,) = await append(tier, [second])
    assert codec_on_disk(tmp_path, at) is Codec.ZSTD
    await tier.close()
    assert len(measured.shown) == 1, "not again for every append"


async def test_auto_stays_without_a_codec_on_a_fast_disk_and_says_why(tmp_path) -> None:
    tier = opened(tmp_path, "auto", measure=Measured(disk=2e9))
    await append(tier, [soft_block("a")])
    await chosen(tier, "zstd pays below 667 MB/s")
    assert tier.codec_choice.codec is Codec.NONE
    await tier.close()


async def test_a_measurement_that_fails_is_tried_again_with_the_next_append(tmp_path) -> None:
    measured = Measured(disk=1e8)
    measured.error = TierIOError("no")
    tier = opened(tmp_path, "auto", measure=measured)
    await append(tier, [soft_block("a")])
    while not measured.shown:
        await asyncio.sleep(0.001)
    measured.error = None
    for i in range(10):
        await append(tier, [soft_block(i)])
        await asyncio.sleep(0)
    await chosen(tier, "break-even")
    await tier.close()


async def test_auto_really_measures_this_disk(tmp_path) -> None:
    tier = opened(tmp_path, "auto")
    await append(tier, [soft_block(i) for i in range(6)])
    await chosen(tier, "disk ")
    await tier.close()
