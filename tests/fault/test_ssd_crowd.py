"""Many readers and writers at one time: everybody is answered, and capacity stays exact."""

import asyncio
import threading

import pytest

from storage.env import RealEnv
from storage.errors import SegmentsFullError, TierBusyError
from storage.ssd.files import aligned_buffer
from storage.ssd.lanes import Lane
from storage.ssd.read_lane import ReadLane
from storage.ssd.read_order import ReadFlow
from storage.ssd.reader import BlockRead
from storage.ssd.tier import SsdTier
from storage.tier import SsdLocation, rounded
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, Block, append, block, chain, read
from tests.ssd.watcher import watched_capacity

READERS = 2000
ANSWER_SECONDS_MAX = 120.0
"""Only that a deadlock fails instead of hanging: nothing here is timed."""


async def test_a_crowd_of_readers_and_writers_is_served_within_the_capacity(tmp_path) -> None:
    tier = SsdTier.open(tmp_path, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES)
    lasting = chain("lasting", 5)
    places = dict(zip((b.hash for b in lasting), await append(tier, lasting), strict=True))
    kept_in = next(iter(places.values())).segment_id
    placed: dict[int, list[Block]] = {}
    written = 0

    async def reader(number: int) -> None:
        b = lasting[number % len(lasting)]
        assert await read(tier, b.record, places[b.hash]) == b.payload

    async def writer(number: int) -> None:
        nonlocal written
        for turn in range(20):
            b = block(f"{number}-{turn}")
            try:
                (location,) = await append(tier, [b])
            except SegmentsFullError:
                await make_room()
                continue
            placed.setdefault(location.segment_id, []).append(b)
            written += 1

    room = asyncio.Lock()

    async def make_room() -> None:
        async with room:
            if tier.free_segment_count < 2:
                sealed = [s.segment_id for s in tier.segments() if s.state == "sealed"]
                victims = [i for i in sealed if i != kept_in]
                if victims:
                    gone = placed.pop(victims[0], [])
                    await tier.forget([b.hash for b in gone])
                    await tier.recycle(victims[0])

    with watched_capacity(tmp_path, CAPACITY_BYTES):
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await asyncio.gather(*(reader(n) for n in range(READERS)), *map(writer, range(8)))
    assert written > 0
    tier.check_integrity()
    await tier.close()


async def test_reads_end_while_the_writer_is_held_up(tmp_path) -> None:
    """No write stands before a read: a disk that takes for ever to sync still reads."""
    held, go_on = threading.Event(), threading.Event()

    class Env(RealEnv):
        hold = False

        def fdatasync(self, fd: int) -> None:
            if self.hold:
                held.set()
                go_on.wait()
            super().fdatasync(fd)

    env = Env()
    tier = SsdTier.open(
        tmp_path, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES, env=env
    )
    blocks = chain("a", 3)
    locations = await append(tier, blocks)
    env.hold = True
    writing = asyncio.create_task(append(tier, [block("late")]))
    await asyncio.to_thread(held.wait)
    for b, location in zip(blocks, locations, strict=True):
        assert await read(tier, b.record, location) == b.payload
    assert not writing.done()
    env.hold = False
    go_on.set()
    await writing
    await tier.close()


def a_read() -> BlockRead:
    b = block("anything")
    size = b.record.payload_bytes
    location = SsdLocation(0, 1, 4096, size, b.record.checksum, size)  # type: ignore[arg-type]
    return BlockRead(b.record, location, aligned_buffer(rounded(size)))


async def read_one(lane: ReadLane) -> None:
    outcomes: list[Exception | None] = []
    await lane.run([a_read()], lambda position, error: outcomes.append(error))
    (error,) = outcomes
    if error is not None:
        raise error


async def test_a_full_queue_of_reads_answers_at_once_and_forgets_nobody() -> None:
    go_on = threading.Event()

    def held_up(reads):  # type: ignore[no-untyped-def]
        go_on.wait()
        return [None] * len(reads)

    lane = ReadLane(held_up, thread_count=1, queue_max=3)
    waiting = [asyncio.create_task(read_one(lane)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TierBusyError, match="3 reads wait"):
        await read_one(lane)
    go_on.set()
    await asyncio.gather(*waiting)
    await read_one(lane)
    await lane.close()


async def test_a_full_queue_of_calls_answers_at_once() -> None:
    go_on = threading.Event()
    lane = Lane("test", 1, 2)
    waiting = [asyncio.create_task(lane.run(go_on.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TierBusyError):
        await lane.run(go_on.wait)
    go_on.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await lane.run(lambda: 7) == 7
    await lane.close()


async def test_a_fault_in_a_reader_thread_reaches_who_waits() -> None:
    def broken(reads):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError

    lane = ReadLane(broken, thread_count=2, queue_max=8)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await read_one(lane)
    await lane.close()


async def test_every_read_of_a_call_is_told_of_once_and_a_fault_in_the_telling_harms_no_other() -> (
    None
):
    def half_bad(reads):  # type: ignore[no-untyped-def]
        return [None if read.location.offset % 2 else ZeroDivisionError() for read in reads]

    lane = ReadLane(half_bad, thread_count=3, queue_max=200)
    told: dict[int, Exception | None] = {}

    def landed(position: int, error: Exception | None) -> None:
        assert position not in told
        told[position] = error
        if position == 7:
            raise RuntimeError("what was told of it is not its reader's business")

    reads = [a_read()._replace(location=a_read().location._replace(offset=n)) for n in range(100)]
    await lane.run(reads, landed)
    assert sorted(told) == list(range(100))
    assert all((told[n] is None) == bool(n % 2) for n in range(100))
    with pytest.raises(TierBusyError):
        await lane.run([a_read()] * 201, landed)
    await lane.run([], landed)
    await lane.close()


async def test_a_cancelled_read_ends_before_its_task_does() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held_up(reads):  # type: ignore[no-untyped-def]
        begun.set()
        go_on.wait()
        return [None] * len(reads)

    lane = ReadLane(held_up, thread_count=1, queue_max=8)
    task = asyncio.create_task(read_one(lane))
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done(), "its memory is still written into"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await lane.close()


MIB = 1 << 20


def a_row(count: int) -> list[BlockRead]:
    """Records of a mebibyte that lie one behind the other."""
    step = MIB + 4096
    location = a_read().location._replace(stored_bytes=MIB, payload_bytes=MIB)
    return [a_read()._replace(location=location._replace(offset=n * step)) for n in range(count)]


async def test_only_what_a_flow_asks_for_first_begins_with_a_short_run() -> None:
    run_mib = []

    def noted(reads):  # type: ignore[no-untyped-def]
        run_mib.append(len(reads))
        return [None] * len(reads)

    lane = ReadLane(noted, thread_count=1, queue_max=100)
    flow = ReadFlow()
    for _ in range(2):
        await lane.run(a_row(16), lambda at, error: None, flow)
    await lane.run(a_row(16), lambda at, error: None)
    assert run_mib == [4, 12, 16, 4, 12]
    await lane.close()


async def test_runs_are_short_after_somebody_who_wanted_little_had_to_wait() -> None:
    go_on, run_bytes = threading.Event(), []

    def held_up(reads):  # type: ignore[no-untyped-def]
        go_on.wait()
        run_bytes.append(sum(read.location.stored_bytes for read in reads))
        return [None] * len(reads)

    lane = ReadLane(held_up, thread_count=1, queue_max=10_000)
    calls = []

    def ask(count: int, flow: ReadFlow) -> None:
        calls.append(asyncio.create_task(lane.run(a_row(count), lambda at, error: None, flow)))

    flows = [ReadFlow(), ReadFlow()]
    for flow in flows:
        ask(64, flow)
    await asyncio.sleep(0)
    ask(1, ReadFlow())
    await asyncio.sleep(0)
    ask(64, flows[0])
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*calls)
    first, last = run_bytes[: -64 // 4], run_bytes[-64 // 4 :]
    assert max(first) == 16 * MIB
    assert set(last) == {4 * MIB}
    assert run_bytes.index(MIB) < 3, "the one is not among the last"
    await lane.close()
