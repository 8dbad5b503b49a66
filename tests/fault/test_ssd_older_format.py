"""A directory of format 1: dropped and reported, never read, also when that start fails."""

import errno
import struct
from pathlib import Path

import pytest
import rocksdict
import xxhash

from storage.errors import DataDirectoryError
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, append, block, read
from tests.ssd.faulty_env import FaultyEnv


def opened(path: Path, env: FaultyEnv | None = None) -> SsdTier:
    return SsdTier.open(
        path, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES, env=env or FaultyEnv()
    )


def sealed(raw: bytes, size: int = PAGE_BYTES - 8, seed: int = 0) -> bytes:
    body = raw.ljust(size, b"\0")
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body, seed))


def write_format_1(path: Path) -> None:
    """Two blocks, byte for byte as format 1 had them."""
    (path / "segments").mkdir()
    (path / "KVTIER-SSD").write_text(f'{{"format": 1, "segment_bytes": {SEGMENT_BYTES}}}\n')
    index = rocksdict.Rdict(str(path / "index"), rocksdict.Options(raw_mode=True))
    segment = struct.pack("<8sIIQQQ", b"KVTSEGMT", 1, 0, 1, SEGMENT_BYTES, 77)
    raw, at = sealed(segment), PAGE_BYTES
    for number, b in enumerate([block("a"), block("b")], 1):
        r = b.record
        names = (r.namespace_id, r.block_hash, r.parent_hash)
        sizes = (number, r.payload_bytes, r.payload_bytes, r.checksum)
        raw += sealed(
            struct.pack("<8sIIQIIQQQQQ32s32s32s", b"KVTRECRD", 1, 0, 1, 0, 0, at, *sizes, *names),
            seed=77,
        )
        raw += b.payload.ljust(2 * PAGE_BYTES, b"\0")
        row = struct.pack(
            "<32s32sIIQQQQQ",
            *(r.parent_hash, r.namespace_id, 0, 0, 1, at, r.payload_bytes, r.checksum, number),
        )
        put(index, b"b" + r.block_hash, row)
        at += 3 * PAGE_BYTES
    put(index, b"s" + bytes(4), struct.pack("<QQQQQ", 1, 1, at, 77, at))
    put(index, b"m", struct.pack("<QQQ", 1, SEGMENT_BYTES, 1))
    index.close()
    for number in range(6):
        whole = raw if number == 0 else b""
        file = path / "segments" / f"{number:06d}.seg"
        file.write_bytes(whole.ljust(SEGMENT_BYTES, b"\0"))


def put(index: rocksdict.Rdict, key: bytes, value: bytes) -> None:
    index[key] = value + struct.pack("<Q", xxhash.xxh3_64_intdigest(key + value))


async def check_emptied(path: Path, tier: SsdTier) -> None:
    assert list(tier.recovered()) == []
    new = block("new")
    (at,) = await append(tier, [new])
    assert await read(tier, new.record, at) == new.payload
    await tier.close()
    assert '"format": 2' in (path / "KVTIER-SSD").read_text()
    again = opened(path)
    assert [record for record, _ in again.recovered()] == [new.record]
    assert again.report.problems == ()
    await again.close()


async def test_blocks_of_format_1_are_dropped_and_reported(memory_path) -> None:
    write_format_1(memory_path)
    tier = opened(memory_path)
    assert tier.report.problems == (
        "the directory was of format 1, which is not read any more: 2 blocks are dropped",
    )
    assert (tier.report.kept_count, tier.report.dropped_count) == (0, 2)
    await check_emptied(memory_path, tier)


async def test_an_index_of_format_1_that_cannot_be_read_is_dropped_all_the_same(
    memory_path,
) -> None:
    write_format_1(memory_path)
    (memory_path / "index" / "CURRENT").write_text("nonsense")
    tier = opened(memory_path)
    assert "an unknown number of blocks are dropped" in tier.report.problems[0]
    await check_emptied(memory_path, tier)


async def test_only_the_index_or_only_a_segment_of_format_1_is_not_read_either(memory_path) -> None:
    """The marker says 2, and a copy of something older lies beside it."""
    for part in ("index", "segments"):
        old, new = memory_path / f"old {part}", memory_path / f"new {part}"
        old.mkdir()
        write_format_1(old)
        await opened(new).close()
        if part == "index":
            FaultyEnv().remove_tree(new / part)
            (old / part).rename(new / part)
        else:
            (old / part / "000000.seg").replace(new / part / "000000.seg")
        tier = opened(new)
        assert list(tier.recovered()) == []
        new_block = block(part)
        (at,) = await append(tier, [new_block])
        assert await read(tier, new_block.record, at) == new_block.payload
        await tier.close()


@pytest.mark.parametrize(("call", "times"), [("rename", 7), ("pwritev", 3), ("unlink", 6)])
async def test_a_start_that_fails_in_it_is_simply_repeated(memory_path, call, times) -> None:
    for nth in range(1, times + 1):
        path = memory_path / str(nth)
        path.mkdir()
        write_format_1(path)
        env = FaultyEnv()
        env.fail(call, errno.EIO, nth)
        with pytest.raises(DataDirectoryError):
            opened(path, env)
        await check_emptied(path, opened(path))
