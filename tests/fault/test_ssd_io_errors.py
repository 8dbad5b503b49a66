"""A disk that refuses: typed errors, nothing half done, and the tier goes on when the disk does."""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import rocksdict
import xxhash

from storage.env import RealEnv
from storage.errors import (
    DataDirectoryError,
    DirectoryFullError,
    DirectoryLockedError,
    DirectoryReadOnlyError,
    ForeignDirectoryError,
    FormatTooNewError,
    TierIOError,
)
from storage.ssd.format import FORMAT_VERSION
from storage.ssd.tier import SsdTier
from storage.tier import SegmentId
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, append, block, chain, read
from tests.ssd.faulty_env import FaultyEnv

ROOT = Path(__file__).parents[2]


def open_at(path: Path, env: FaultyEnv | None = None, capacity: int = CAPACITY_BYTES) -> SsdTier:
    return SsdTier.open(
        path, capacity_bytes=capacity, segment_bytes=SEGMENT_BYTES, env=env or FaultyEnv()
    )


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(("call", "nth"), [("pwritev", 1), ("fdatasync", 1), ("fdatasync", 2)])
async def test_a_failed_append_changes_nothing_and_the_next_one_works(
    tmp_path, call, nth, code
) -> None:
    env = FaultyEnv(refuse_direct=True)
    tier = open_at(tmp_path, env)
    before = chain("a", 3)
    at = await append(tier, before)
    segments = tier.segments()
    env.fail(call, code, nth)
    with pytest.raises(TierIOError, match="cannot be written"):
        await append(tier, [block(f"lost {i}") for i in range(4)])
    assert tier.segments() == segments
    after = chain("b", 4)
    at += await append(tier, after)
    for b, location in zip(before + after, at, strict=True):
        assert await read(tier, b.record, location) == b.payload
    await tier.close()
    again = open_at(tmp_path)
    expected = {(b.record, x) for b, x in zip(before + after, at, strict=True)}
    assert set(again.recovered()) == expected
    await again.close()


async def test_what_a_failed_append_left_is_not_repaired_into_a_later_one(tmp_path) -> None:
    """Three whole records on disk, never acknowledged; one shorter append over the first."""
    env = FaultyEnv(refuse_direct=True)
    tier = open_at(tmp_path, env)
    lost = [block(f"lost {i}") for i in range(3)]
    env.fail("fdatasync", errno.EIO)
    with pytest.raises(TierIOError):
        await append(tier, lost)
    await append(tier, [block("kept")])
    await tier.close()
    again = open_at(tmp_path)
    assert [r.block_hash for r, _ in again.recovered()] == [block("kept").hash]
    assert again.report.repaired_count == 0
    await again.close()


async def test_a_failed_recycle_leaves_the_segment_sealed_or_repeats(tmp_path) -> None:
    env = FaultyEnv(refuse_direct=True)
    tier = open_at(tmp_path, env)
    blocks = [block(i) for i in range(6)]
    await append(tier, blocks)
    await tier.forget([b.hash for b in blocks[:5]])
    for call in ("pwritev", "fdatasync"):
        env.fail(call, errno.EIO)
        with pytest.raises(TierIOError, match="cannot be recycled"):
            await tier.recycle(SegmentId(0))
        assert tier.segments()[0].state == "sealed"
    await tier.close()
    again = open_at(tmp_path, env)
    # The header said "generation 2" already, so the recycle counts as done.
    assert (again.segments()[0].state, again.segments()[0].generation) == ("free", 2)
    assert {r.block_hash for r, _ in again.recovered()} == {blocks[5].hash}
    await again.close()


async def test_a_read_error_is_typed_and_passes(tmp_path) -> None:
    env = FaultyEnv()
    tier = open_at(tmp_path, env)
    b = block("a")
    (at,) = await append(tier, [b])
    env.fail("preadv", errno.EIO)
    with pytest.raises(TierIOError, match="cannot be read"):
        await read(tier, b.record, at)
    assert await read(tier, b.record, at) == b.payload
    await tier.close()


async def test_a_full_disk_leaves_no_new_files(tmp_path) -> None:
    env = FaultyEnv()
    env.fail("fallocate", errno.ENOSPC, nth=3)
    with pytest.raises(DirectoryFullError, match="lower ssd capacity_bytes"):
        open_at(tmp_path / "ssd", env)
    assert list((tmp_path / "ssd" / "segments").iterdir()) == []
    tier = open_at(tmp_path / "ssd", env)
    await append(tier, chain("a", 4))
    await tier.close()
    env.fail("fallocate", errno.ENOSPC, nth=2)
    with pytest.raises(DirectoryFullError):
        open_at(tmp_path / "ssd", env, CAPACITY_BYTES + 3 * SEGMENT_BYTES)
    assert len(list((tmp_path / "ssd" / "segments").iterdir())) == 6
    tier = open_at(tmp_path / "ssd", env)
    assert tier.report.kept_count == 4
    await tier.close()


def test_more_capacity_than_the_file_system_has_is_refused_before_it_is_full(tmp_path) -> None:
    segment_bytes = RealEnv().free_bytes(tmp_path) // 4096 * 4096 * 2
    with pytest.raises(DirectoryFullError, match="lower ssd capacity_bytes"):
        SsdTier.open(tmp_path, capacity_bytes=4 * segment_bytes, segment_bytes=segment_bytes)
    assert list((tmp_path / "segments").iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("call", ["mkdir", "open", "rename"])
def test_a_read_only_directory_is_a_typed_error(tmp_path, call, code) -> None:
    env = FaultyEnv()
    env.fail(call, code)
    with pytest.raises(DirectoryReadOnlyError, match="write access"):
        open_at(tmp_path / "ssd", env)


async def test_a_directory_in_use_names_the_process(tmp_path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ssd.appender", str(tmp_path), "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(DirectoryLockedError, match=f"process {process.pid}"):
            open_at(tmp_path)
        process.kill()
    process.wait()
    tier = open_at(tmp_path)
    assert tier.report.problems == (), "the lock went with the process"
    await tier.close()


async def test_a_failed_open_gives_the_lock_back(tmp_path) -> None:
    env = FaultyEnv()
    for nth in range(1, 40):
        env.fail("open", errno.EMFILE, nth)
        try:
            tier = open_at(tmp_path / "ssd", env)
        except DataDirectoryError:
            continue
        else:
            await tier.close()
            break
    else:
        pytest.fail("opening never came through")


@pytest.mark.parametrize("name", ["notes.txt", "index", "segments", "000000.seg"])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path, name) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ForeignDirectoryError, match="empty directory of its own"):
        open_at(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_path_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataDirectoryError, match="cannot be used"):
        open_at(tmp_path / "file")


async def test_a_fresh_file_system_counts_as_empty(tmp_path) -> None:
    (tmp_path / "lost+found").mkdir()
    tier = open_at(tmp_path)
    assert tier.report.problems == ()
    await tier.close()


async def test_strange_files_among_ours_are_reported_and_left_alone(tmp_path) -> None:
    await (tier := open_at(tmp_path)).close()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "segments" / "backup.seg").write_text("mine too")
    (tmp_path / "segments" / "000009.seg.tmp").write_text("unfinished")
    tier = open_at(tmp_path)
    await tier.close()
    assert len(tier.report.problems) == 2
    assert all("not kvtier's and was left alone" in p for p in tier.report.problems)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "segments" / "000009.seg.tmp").exists()


async def test_a_newer_or_foreign_marker_is_refused(tmp_path) -> None:
    await open_at(tmp_path).close()
    marker = tmp_path / "KVTIER-SSD"
    marker.write_text('{"format": 4, "segment_bytes": 65536}\n')
    with pytest.raises(FormatTooNewError, match="format 4 and this kvtier knows up to 3"):
        open_at(tmp_path)
    marker.write_text("something else\n")
    with pytest.raises(ForeignDirectoryError, match="not kvtier's"):
        open_at(tmp_path)


async def test_a_newer_index_is_refused_not_rebuilt(tmp_path) -> None:
    await open_at(tmp_path).close()
    index = rocksdict.Rdict(str(tmp_path / "index"), rocksdict.Options(raw_mode=True))
    fields = struct.pack("<QQQ", FORMAT_VERSION + 1, SEGMENT_BYTES, 9)
    index[b"m"] = fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(b"m" + fields))
    index.close()
    for _ in range(2):
        with pytest.raises(FormatTooNewError):
            open_at(tmp_path)
