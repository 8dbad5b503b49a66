"""A clock that jumps back and forth: everything is measured with it, and nothing depends on it."""

import asyncio
import itertools
from pathlib import Path

from storage.ssd.scrub import Scrubber
from storage.ssd.tier import SsdTier
from storage.tier import BlockRecord, SegmentId, SsdLocation
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, append, read, soft_block
from tests.ssd.faulty_env import FaultyEnv

JUMPS = [0.0, 3600.0, -7200.0, 0.0001, -1e9, 1e9, -0.5, 86_400.0]


class JumpingEnv(FaultyEnv):
    """Each look at the clock finds another jump."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._jumps = itertools.cycle(JUMPS)
        self._now = 1e6

    def monotonic_seconds(self) -> float:
        self._now += next(self._jumps)
        return self._now


class Live:
    def __init__(self, places: dict[BlockRecord, SsdLocation]) -> None:
        self.places = places

    def segment_ids(self) -> list[SegmentId]:
        return sorted({x.segment_id for x in self.places.values()})

    def in_segment(self, segment_id: SegmentId) -> list[tuple[BlockRecord, SsdLocation]]:
        return [(r, x) for r, x in self.places.items() if x.segment_id == segment_id]

    def holds(self, record: BlockRecord, location: SsdLocation) -> bool:
        return True


async def test_storing_measuring_scrubbing_and_restarting_do_not_mind(memory_path: Path) -> None:
    env = JumpingEnv(refuse_direct=True)
    blocks = [soft_block(i) for i in range(12)]
    for round_number in range(3):
        tier = SsdTier.open(
            memory_path / "ssd",
            capacity_bytes=CAPACITY_BYTES,
            segment_bytes=SEGMENT_BYTES,
            codec="auto",
            env=env,
        )
        assert tier.report.duration_seconds >= 0
        assert tier.report.kept_count == 4 * round_number
        places = dict(tier.recovered())
        batch = blocks[4 * round_number : 4 * round_number + 4]
        for b, at in zip(batch, await append(tier, batch), strict=True):
            places[b.record] = at
        async with asyncio.timeout(20):
            while "disk" not in tier.codec_choice.reason:
                await asyncio.sleep(0.001)
        for b in blocks[: 4 * round_number + 4]:
            assert await read(tier, b.record, places[b.record]) == b.payload
            assert tier.stats().index_bytes > 0
        waited: list[float] = []

        async def sleep(seconds: float, waited: list[float] = waited) -> None:
            waited.append(seconds)

        scrubber = Scrubber(tier, Live(places), env.monotonic_seconds, sleep)
        steps = [step async for step in scrubber.walk(1e6)]
        assert len(steps) == len(places)
        assert all(step.problem is None for step in steps)
        assert all(0 <= seconds <= 1 for seconds in waited), "no jump is waited for"
        await tier.close()
