"""A scrub: in order, within its budget, behind readers, and finding exactly what is wrong."""

import asyncio
from collections.abc import Sequence

import pytest

from storage.errors import CorruptBlockError, TierIOError
from storage.ssd.format import record_bytes, segment_path
from storage.ssd.scrub import Pace, Scrubber, ScrubStep
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, BlockRecord, SegmentId, SsdLocation
from tests.ssd.blocks import append, block, chain, read

RECORD_BYTES = record_bytes(5000)


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Live:
    """Where each block lies, as an owner keeps it."""

    def __init__(self) -> None:
        self.places: dict[BlockRecord, SsdLocation] = {}

    def segment_ids(self) -> Sequence[SegmentId]:
        return sorted({x.segment_id for x in self.places.values()})

    def in_segment(self, segment_id: SegmentId) -> Sequence[tuple[BlockRecord, SsdLocation]]:
        inside = [(r, x) for r, x in self.places.items() if x.segment_id == segment_id]
        return sorted(inside, key=lambda pair: pair[1].offset)

    def holds(self, record: BlockRecord, location: SsdLocation) -> bool:
        return self.places.get(record) == location


async def walked(scrubber: Scrubber, budget: float | None = None) -> list[ScrubStep]:
    return [step async for step in scrubber.walk(budget)]


@pytest.fixture
async def filled(open_tier) -> tuple[SsdTier, Live]:
    tier = open_tier()
    blocks = chain("a", 12)
    locations = await append(tier, blocks)
    live = Live()
    # Entered backwards: the walk goes by place, not by the order of the owner's table.
    pairs = reversed(list(zip(blocks, locations, strict=True)))
    live.places = {b.record: x for b, x in pairs}
    return tier, live


async def test_every_live_block_is_looked_at_once_in_the_order_of_its_place(filled) -> None:
    tier, live = filled
    clock = Clock()
    steps = await walked(Scrubber(tier, live, clock, clock.sleep))
    places = [(s.location.segment_id, s.location.offset) for s in steps]
    assert places == sorted((x.segment_id, x.offset) for x in live.places.values())
    assert all(s.problem is None for s in steps)
    assert sum(s.size_bytes for s in steps) == 12 * RECORD_BYTES
    assert tier.stats().read_bytes == 0, "nobody asked for them"
    assert clock.slept == []


async def test_rot_is_found_and_only_there(filled, tmp_path) -> None:
    tier, live = filled
    record = list(live.places)[3]
    at = live.places[record]
    with segment_path(tmp_path / "ssd", at.segment_id).open("r+b") as file:
        file.seek(at.offset + PAGE_BYTES + 100)
        file.write(b"\0\0\0\0")
    clock = Clock()
    found = [s for s in await walked(Scrubber(tier, live, clock, clock.sleep)) if s.problem]
    assert [(s.record, s.location) for s in found] == [(record, at)]
    assert isinstance(found[0].problem, CorruptBlockError)


async def test_a_place_that_cannot_be_read_is_another_kind_of_finding(filled, env) -> None:
    tier, live = filled
    env.fail("preadv", 5, nth=2)
    clock = Clock()
    steps = await walked(Scrubber(tier, live, clock, clock.sleep))
    assert [type(s.problem) for s in steps[:3]] == [type(None), TierIOError, type(None)]
    assert len(steps) == 12


async def test_a_block_that_moves_or_leaves_while_it_is_looked_at_is_no_finding(filled) -> None:
    tier, live = filled
    records = sorted(live.places, key=lambda r: (live.places[r].segment_id, live.places[r].offset))
    clock = Clock()
    steps = []
    async for step in Scrubber(tier, live, clock, clock.sleep).walk(None):
        steps.append(step)
        if step.record == records[0]:
            gone = live.places.pop(records[1])
            live.places[records[2]] = live.places[records[2]]._replace(offset=gone.offset)
    assert [s.record for s in steps] == [records[0], *records[3:]]


class SlowTier:
    """Reads take no time here; how many are under way is the test's choice."""

    def __init__(self) -> None:
        self.reads_under_way = 0
        self.verified = 0

    async def verify(self, record: BlockRecord, location: SsdLocation) -> None:
        self.verified += 1


def one_block() -> Live:
    live = Live()
    record = block("a").record
    live.places[record] = SsdLocation(SegmentId(0), 1, PAGE_BYTES, 5000, record.checksum, 5000)
    return live


async def test_readers_go_first_but_not_for_ever() -> None:
    tier, clock = SlowTier(), Clock()
    tier.reads_under_way = 3
    await walked(Scrubber(tier, one_block(), clock, clock.sleep))
    assert tier.verified == 1
    assert sum(clock.slept) == pytest.approx(0.5)


async def test_the_budget_is_kept_over_a_walk(filled) -> None:
    tier, live = filled
    clock = Clock()
    await walked(Scrubber(tier, live, clock, clock.sleep), budget=RECORD_BYTES * 4.0)
    assert clock.now == pytest.approx(100 + 11 / 4), "the first one need not wait"


def test_a_pace_without_limit_never_waits() -> None:
    assert Pace(None, lambda: 1.0).wait_seconds(1 << 40) == 0.0


def test_a_clock_that_jumps_never_stops_the_pace() -> None:
    now = [1000.0]
    pace = Pace(100.0, lambda: now[0])
    assert pace.wait_seconds(100) == 0.0
    for jump in (-900.0, +5000.0, -4000.0, -50.0):
        now[0] += jump
        assert pace.wait_seconds(100) <= 1.0


async def test_a_tier_that_is_closed_ends_the_walk(filled) -> None:
    tier, live = filled
    clock = Clock()
    walk = Scrubber(tier, live, clock, clock.sleep).walk(None)
    assert (await anext(walk)).problem is None
    await tier.close()
    assert isinstance((await anext(walk)).problem, TierIOError)
    await walk.aclose()


async def test_verifying_and_reading_go_on_side_by_side(filled) -> None:
    tier, live = filled
    clock = Clock()
    expected = {b.record: b.payload for b in chain("a", 12)}

    async def read_all() -> None:
        for record, location in live.places.items():
            assert await read(tier, record, location) == expected[record]

    scrubber = Scrubber(tier, live, clock, clock.sleep)
    _, *steps = await asyncio.gather(read_all(), walked(scrubber), walked(scrubber))
    assert [len(s) for s in steps] == [12, 12]
    assert tier.reads_under_way == 0
