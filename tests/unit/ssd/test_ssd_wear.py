"""What was written in a store's life is counted across starts, and not too little after a kill."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import rocksdict

from storage.errors import TierIOError
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.ssd.blocks import append, block, chain
from tests.ssd.faulty_env import FaultyEnv

RECORD_BYTES = 3 * PAGE_BYTES
"""Of a block of 5,000 bytes."""


@pytest.fixture
def env() -> FaultyEnv:
    """Buffered: what pre-writing writes is a matter of timing."""
    return FaultyEnv(refuse_direct=True, wall=1000.0)


async def reopened(tier: SsdTier, open_tier: Any) -> SsdTier:
    await tier.close()
    again: SsdTier = open_tier()
    return again


async def test_what_is_written_adds_up_across_starts(open_tier: Any, env: FaultyEnv) -> None:
    tier = open_tier()
    assert (tier.wear.since_seconds, tier.wear.whole) == (1000.0, True)
    await append(tier, chain("a", 2))
    env.wall = 2000.0
    tier = await reopened(tier, open_tier)
    await append(tier, chain("b", 1))
    tier = await reopened(tier, open_tier)
    assert (tier.wear.since_seconds, tier.wear.whole) == (1000.0, True)
    assert tier.wear.payload_bytes == 3 * 5000
    assert tier.wear.device_bytes == PAGE_BYTES + 3 * RECORD_BYTES


async def test_relogging_and_recycling_wear_too(open_tier: Any) -> None:
    tier = open_tier()
    places = await append(tier, [block(i) for i in range(20)])
    before, (first, *_) = tier.wear, tier.segments()
    assert first.state == "sealed"
    kept = block(0)
    await tier.relog([(kept.record, places[0])])
    await tier.recycle(first.segment_id)
    assert tier.wear.payload_bytes == before.payload_bytes + 5000
    assert tier.wear.device_bytes == tier.stats().written_bytes


async def test_a_killed_process_has_counted_all_that_it_wrote(
    open_tier: Any, env: FaultyEnv, tmp_path: Path
) -> None:
    tier = open_tier()
    await append(tier, chain("a", 1))
    tier.note(b"spent")
    env.fail("fdatasync", errno.EIO)
    with pytest.raises(TierIOError):
        await append(tier, chain("b", 1))
    # As a kill at this moment leaves it: written, not acknowledged.
    shutil.copytree(tmp_path / "ssd", tmp_path / "killed")
    found = open_tier(path=tmp_path / "killed")
    assert found.wear.payload_bytes == 2 * 5000
    assert found.wear.note == b"spent"


async def test_the_owners_note_comes_back(open_tier: Any) -> None:
    tier = open_tier()
    assert tier.wear.note == b""
    tier.note(b"first")
    tier.note(b"second")
    tier = await reopened(tier, open_tier)
    assert tier.wear.note == b"second"


@pytest.mark.parametrize("how", ["absent", "damaged", "no index"])
async def test_a_store_without_a_count_begins_to_count_and_says_that_it_is_not_whole(
    open_tier: Any, env: FaultyEnv, tmp_path: Path, how: str
) -> None:
    tier = open_tier()
    await append(tier, chain("a", 2))
    await tier.close()
    if how == "no index":
        shutil.rmtree(tmp_path / "ssd" / "index")
    else:
        index = rocksdict.Rdict(str(tmp_path / "ssd" / "index"), rocksdict.Options(raw_mode=True))
        if how == "damaged":
            index[b"w"] = bytes(reversed(index[b"w"]))  # type: ignore[arg-type]
        else:
            del index[b"w"]
        index.close()
    env.wall = 5000.0
    tier = open_tier()
    assert len(tier.recovered()) == 2
    assert (tier.wear.since_seconds, tier.wear.whole) == (5000.0, False)
    assert tier.wear.payload_bytes == 0
