"""What must be true of a store after a scenario was broken off, however that was done."""

from pathlib import Path

from tests.ssd.blocks import SEGMENT_BYTES, append, block, read
from tests.ssd.scenarios import Scenario, opened


async def check_wreck(path: Path, scenario: Scenario, acknowledged: bool) -> None:
    """It opens, capacity is exact, what was committed is there and right, nothing else is, and it
    goes on storing."""
    before, added, removed = (
        {b.hash: b for b in blocks}
        for blocks in (scenario.before, scenario.added, scenario.removed)
    )
    must = {h: b for h, b in before.items() if h not in removed}
    may = must | added | removed
    if acknowledged:
        must, may = must | added, must | added
    tier = opened(path, capacity_bytes=scenario.capacity_bytes, encryption=scenario.encryption)
    places = {record.block_hash: (record, at) for record, at in tier.recovered()}
    assert set(must) <= set(places), "committed and gone"
    assert set(places) <= set(may), "appeared from nowhere"
    for block_hash, (record, at) in places.items():
        assert record == may[block_hash].record
        assert await read(tier, record, at) == may[block_hash].payload
    assert tier.report.kept_count == len(places)
    assert scenario.problems or tier.report.problems == ()
    tier.check_integrity()
    sizes = [f.stat().st_size for f in (path / "segments").iterdir()]
    assert sizes == [SEGMENT_BYTES] * (scenario.capacity_bytes // SEGMENT_BYTES)
    if tier.free_segment_count:
        fresh = block("fresh")
        (at,) = await append(tier, [fresh])
        assert await read(tier, fresh.record, at) == fresh.payload
    await tier.close()
