"""An index that is older or newer than the segments: every pair out of one life of a store.

The life is copied after each step. Then each index is put beside each set of segments. A block
must be found when index and segments both hold it at the same place; what else is found must read
back right or not at all.
"""

import shutil
from pathlib import Path

import pytest

from storage.errors import CorruptBlockError
from storage.ssd.tier import SsdTier
from storage.tier import SegmentId
from tests.ssd.blocks import SEGMENT_BYTES, Block, append, block, read
from tests.ssd.scenarios import ROOTS, opened

Places = dict[bytes, tuple[int, int, int]]
"""Segment, generation and offset of each block."""

STEPS = ["stored 3", "stored 12", "forgot 5", "recycled", "stored 6 more", "relogged", "reopened"]


async def life(path: Path, copies: Path) -> list[Places]:
    """Takes a copy after each step; returns what was committed at each."""
    history: list[Places] = []
    places: Places = {}

    async def took(tier: SsdTier, step: int) -> SsdTier:
        await tier.close()
        shutil.copytree(path, copies / str(step))
        history.append(dict(places))
        return opened(path)

    def note(blocks: list[Block], where: list) -> None:
        for b, x in zip(blocks, where, strict=True):
            places[b.hash] = (x.segment_id, x.generation, x.offset)

    tier = opened(path)
    note(ROOTS[:3], await append(tier, ROOTS[:3]))
    tier = await took(tier, 0)
    note(ROOTS[3:12], await append(tier, ROOTS[3:12]))
    tier = await took(tier, 1)
    await tier.forget([b.hash for b in ROOTS[:5]])
    for b in ROOTS[:5]:
        del places[b.hash]
    tier = await took(tier, 2)
    await tier.recycle(SegmentId(0))
    tier = await took(tier, 3)
    note(ROOTS[12:18], await append(tier, ROOTS[12:18]))
    tier = await took(tier, 4)
    old = dict(tier.recovered())
    moved = await tier.relog([(b.record, old[b.record]) for b in ROOTS[5:8]])
    note(ROOTS[5:8], moved)
    tier = await took(tier, 5)
    tier = await took(tier, 6)
    await tier.close()
    return history


def physically_in(history: list[Places], segments_of: int) -> set[tuple]:
    """Records that lie whole in the segments at a step: all that were ever written until then,
    less those of a generation that was written over."""
    written = {
        (block_hash, *place)
        for places in history[: segments_of + 1]
        for block_hash, place in places.items()
    }
    if segments_of >= 3:  # segment 0 was recycled: generation 1 of it is gone
        written = {w for w in written if (w[1], w[2]) != (0, 1)}
    return written


async def test_any_index_beside_any_segments(memory_path: Path) -> None:
    copies = memory_path / "copies"
    history = await life(memory_path / "life", copies)
    assert len(history) == len(STEPS)
    for index_of in range(len(STEPS)):
        for segments_of in range(len(STEPS)):
            path = memory_path / "mixed"
            shutil.copytree(copies / str(segments_of), path)
            shutil.rmtree(path / "index")
            shutil.copytree(copies / str(index_of) / "index", path / "index")
            lying = physically_in(history, segments_of)
            must = {h for h, place in history[index_of].items() if (h, *place) in lying}
            await check(path, must, f"index: {STEPS[index_of]}, segments: {STEPS[segments_of]}")
            shutil.rmtree(path)


async def check(path: Path, must: set[bytes], case: str) -> None:
    known = {b.hash: b for b in [*ROOTS, block("fresh")]}
    for _ in range(2):
        tier = opened(path)
        good = set()
        for record, at in tier.recovered():
            try:
                raw = await read(tier, record, at)
            except CorruptBlockError:
                continue
            assert raw == known[record.block_hash].payload, case
            good.add(record.block_hash)
        assert must <= good, f"{case}: committed, intact and not found"
        sizes = [f.stat().st_size for f in (path / "segments").iterdir()]
        assert sizes == [SEGMENT_BYTES] * 6, case
        (at,) = await append(tier, [fresh := block("fresh")])
        assert await read(tier, fresh.record, at) == fresh.payload, case
        for b in known.values():
            if b.hash in must:
                where = dict(tier.recovered()).get(b.record)
                assert where is None, "handed over once"
        tier.check_integrity()
        await tier.close()


@pytest.mark.parametrize("lost", ["CURRENT", "MANIFEST", "everything but CURRENT"])
async def test_an_index_with_parts_missing_is_rebuilt(memory_path: Path, lost: str) -> None:
    path = memory_path / "ssd"
    tier = opened(path)
    await append(tier, ROOTS[:12])
    await tier.close()
    for file in (path / "index").iterdir():
        others = lost == "everything but CURRENT" and file.name not in ("CURRENT", "LOCK")
        if others or file.name.startswith(lost):
            file.unlink()
    await check(path, {b.hash for b in ROOTS[:12]}, lost)
