"""The capacity is kept at every instant, also while it changes between two starts."""

import random
import shutil
import tempfile
from pathlib import Path

import pytest

from storage.env import Env
from storage.ssd.tier import SsdTier
from tests.ssd.blocks import SEGMENT_BYTES, append, block, chain, read
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.watcher import watched_capacity


def opened(directory: Path, segment_count: int, env: Env | None = None) -> SsdTier:
    return SsdTier.open(
        directory,
        capacity_bytes=segment_count * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
        env=env,
    )


async def test_files_never_pass_the_larger_of_two_capacities_while_they_change(tmp_path) -> None:
    rng = random.Random(3)
    before = 4
    await opened(tmp_path, before).close()
    for turn in range(12):
        after = rng.randrange(4, 12)
        with watched_capacity(tmp_path, max(before, after) * SEGMENT_BYTES):
            tier = opened(tmp_path, after)
        with watched_capacity(tmp_path, after * SEGMENT_BYTES):
            for record, location in tier.recovered():
                await read(tier, record, location)
            if tier.free_segment_count > 1:
                await append(tier, [block(f"{turn}-{i}") for i in range(4)])
        tier.check_integrity()
        await tier.close()
        before = after


@pytest.mark.parametrize("grown", [5, 9])
async def test_a_larger_capacity_keeps_blocks_and_chains(tmp_path, grown: int) -> None:
    tier = opened(tmp_path, 4)
    blocks = chain("a", 12)
    placed = dict(zip((b.hash for b in blocks), await append(tier, blocks), strict=True))
    await tier.close()
    tier = opened(tmp_path, grown)
    assert {r.block_hash: x for r, x in tier.recovered()} == placed
    assert tier.report.problems == ()
    await tier.close()


async def test_a_smaller_capacity_keeps_every_block_of_the_segments_that_stay(tmp_path) -> None:
    tier = opened(tmp_path, 8)
    blocks = [block(i) for i in range(30)]
    placed = dict(zip((b.hash for b in blocks), await append(tier, blocks), strict=True))
    await tier.close()
    tier = opened(tmp_path, 5)
    found = {r.block_hash: x for r, x in tier.recovered()}
    assert found == {h: x for h, x in placed.items() if x.segment_id < 5}
    assert tier.report.dropped_count == len(placed) - len(found)
    await tier.close()


@pytest.mark.parametrize("refused", [False, True])
async def test_on_a_memory_file_system_the_tier_works_in_the_mode_it_reports(refused: bool) -> None:
    """Kernels differ in whether tmpfs takes direct I/O; the tier finds out by itself, and goes
    through the page cache where it is refused."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no tmpfs here")
    directory = Path(tempfile.mkdtemp(dir=memory))
    try:
        tier = opened(directory, 4, FaultyEnv(refuse_direct=refused))
        assert tier.io_mode in ("buffered", "buffered" if refused else "direct")
        assert bool(tier.io_problem) == (tier.io_mode == "buffered")
        blocks = chain("a", 6)
        for b, location in zip(blocks, await append(tier, blocks), strict=True):
            assert await read(tier, b.record, location) == b.payload
        await tier.close()
    finally:
        shutil.rmtree(directory)
