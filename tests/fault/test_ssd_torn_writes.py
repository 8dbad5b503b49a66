"""A write that a power cut tore: at every page boundary, and with every single page missing.

The index is the one from before the append, as when the power went before its rows were written.
A lost page holds what lay there before: zeros, or records of an older generation.
"""

import errno
import shutil
from pathlib import Path

import pytest

from storage.errors import TierIOError
from storage.ssd.format import record_bytes, segment_path
from storage.ssd.key_ring import Encryption
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.blocks import Block, append, block, read, soft_block
from tests.ssd.faulty_env import FaultyEnv
from tests.ssd.scenarios import opened

BEFORE = [block("before")]
KINDS: dict[str, tuple[str, list[Block]]] = {
    "plain": ("none", [block(f"torn {i}", payload_bytes=n) for i, n in enumerate([5000, 1, 9000])]),
    "zstd": ("zstd", [soft_block(f"torn {i}", payload_bytes=9000) for i in range(3)]),
}


async def torn_state(
    path: Path, codec: str, encryption: Encryption, batch: list[Block], recycled: bool
) -> tuple:
    """Directory before the append, segment before and after it, and where each record ends."""
    tier = opened(path, codec=codec, encryption=encryption)
    if recycled:
        old = [block(f"old {i}") for i in range(6)]
        await append(tier, old)
        await tier.forget([b.hash for b in old])
        await tier.recycle(SegmentId(0))
        (kept,) = await append(tier, BEFORE)
        assert kept.segment_id == 1, "the open segment goes on"
        await append(tier, [block(f"filler {i}") for i in range(3)])
        (kept,) = await append(tier, [block("opens the recycled one")])
        assert (kept.segment_id, kept.generation) == (0, 2)
    else:
        await append(tier, BEFORE)
    await tier.close()
    before = path.parent / "before"
    shutil.copytree(path, before)
    # A second opening, so that the sequence numbers of the lost append are above the index's.
    tier = opened(path, codec=codec, encryption=encryption)
    places = await append(tier, batch)
    await tier.close()
    ends = [x.offset + record_bytes(x.stored_bytes) for x in places]
    assert {x.segment_id for x in places} == {0}
    return before, segment_path(path, SegmentId(0)).read_bytes(), places[0].offset, ends


@pytest.mark.parametrize("recycled", [False, True], ids=["fresh", "recycled"])
@pytest.mark.parametrize("kind", KINDS)
async def test_only_records_that_are_whole_and_have_no_hole_before_them_come_back(
    memory_path, kind, recycled, encryption
) -> None:
    codec, batch = KINDS[kind]
    path = memory_path / "ssd"
    before, written, start, ends = await torn_state(path, codec, encryption, batch, recycled)
    lost = segment_path(before, SegmentId(0)).read_bytes()
    boundaries = range(start, ends[-1] + 1, PAGE_BYTES)
    cases = [("cut", at, written[:at] + lost[at:]) for at in boundaries]
    for at in boundaries[:-1]:
        hole = written[:at] + lost[at : at + PAGE_BYTES] + written[at + PAGE_BYTES :]
        cases.append(("hole", at, hole))
    for kind_of_loss, at, raw in cases:
        shutil.rmtree(path)
        shutil.copytree(before, path)
        segment_path(path, SegmentId(0)).write_bytes(raw)
        whole = sum(end <= at for end in ends)
        await check(path, encryption, batch, whole, f"{kind_of_loss} at {at}")


async def check(
    path: Path, encryption: Encryption, batch: list[Block], whole: int, case: str
) -> None:
    tier = opened(path, encryption=encryption)
    found = {record.block_hash: (record, at) for record, at in tier.recovered()}
    assert BEFORE[0].hash in found, case
    assert [b.hash in found for b in batch] == [i < whole for i in range(len(batch))], case
    assert not any(block(f"old {i}").hash in found for i in range(6)), case
    assert tier.report.repaired_count == whole, case
    for b in [*BEFORE, *batch[:whole]]:
        assert await read(tier, *found[b.hash]) == b.payload, case
    (at,) = await append(tier, [block("after")])
    assert await read(tier, block("after").record, at) == block("after").payload, case
    await tier.close()


async def test_what_a_failed_append_left_in_an_open_segment_stays_out(
    memory_path, encryption
) -> None:
    """Whole records under the right generation and seed; only their numbers are too low."""
    env = FaultyEnv(refuse_direct=True)
    tier = opened(memory_path / "ssd", env, encryption=encryption)
    await append(tier, BEFORE)
    env.fail("fdatasync", errno.EIO)
    lost = [block(f"lost {i}") for i in range(3)]
    with pytest.raises(TierIOError):
        await append(tier, lost)
    await append(tier, [block("later")])
    await tier.close()
    for index in ("there", "lost"):
        if index == "lost":
            shutil.rmtree(memory_path / "ssd" / "index")
        tier = opened(memory_path / "ssd", encryption=encryption)
        found = {record.block_hash for record, _ in tier.recovered()}
        assert found == {BEFORE[0].hash, block("later").hash}
        assert tier.report.repaired_count == 0
        await tier.close()
