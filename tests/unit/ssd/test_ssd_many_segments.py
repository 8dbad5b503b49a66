"""With many segments their header pages are read by several threads; what is found is the same."""

import errno
import os
from pathlib import Path

import pytest

from storage.errors import DataDirectoryError
from storage.ssd.format import segment_path
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import append, chain, read
from tests.ssd.faulty_env import FaultyEnv

SEGMENT_BYTES = 8 * PAGE_BYTES
SEGMENT_COUNT = 200


def opened(path: Path, env: FaultyEnv) -> SsdTier:
    return SsdTier.open(
        path,
        capacity_bytes=SEGMENT_COUNT * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
        env=env,
    )


async def test_damage_is_told_in_order_and_costs_nothing(tmp_path: Path) -> None:
    env = FaultyEnv()
    tier = opened(tmp_path / "ssd", env)
    blocks = chain("a", 150)
    await append(tier, blocks)
    used = [s.segment_id for s in tier.segments() if s.state != "free"]
    await tier.close()
    damaged = used[::9]
    for segment_id in damaged:
        with segment_path(tmp_path / "ssd", SegmentId(segment_id)).open("r+b") as file:
            file.write(b"\xff" * PAGE_BYTES)
    for problem_count in (len(damaged), 0):
        tier = opened(tmp_path / "ssd", env)
        found = [p for p in tier.report.problems if "written again from the index" in p]
        assert len(found) == problem_count
        assert found == sorted(found, key=lambda line: int(line.split()[1].rstrip(":")))
        assert tier.report.kept_count == 150
        recovered = {record.block_hash: (record, at) for record, at in tier.recovered()}
        for block in blocks:
            assert await read(tier, *recovered[block.hash]) == block.payload
        await tier.close()


@pytest.mark.parametrize("nth", [2, 60, 190])
async def test_a_file_that_does_not_open_leaves_none_open(tmp_path: Path, nth: int) -> None:
    env = FaultyEnv()
    await opened(tmp_path / "ssd", env).close()
    before = len(os.listdir("/proc/self/fd"))
    env.fail("open", errno.EMFILE, nth=nth)
    with pytest.raises(DataDirectoryError):
        opened(tmp_path / "ssd", env)
    assert len(os.listdir("/proc/self/fd")) == before
    await opened(tmp_path / "ssd", env).close()
