"""The replay says what the service does: one trace through both, over a real arena and a real SSD.

What they may differ by is stated where it is checked. The service writes a window ahead of what
leaves, and decides about it then; and it finds its tiers' turns in other numbers.
"""

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from cache_service.replay.cache import WriteWhen
from cache_service.replay.options import Admission, Amount, ReplayOptions
from cache_service.replay.result import ReplayResult
from cache_service.replay.run import replay
from cache_service.replay.trace import NO_BLOCK, Request, Trace
from cache_service.views import CachePolicies
from cache_service.write_ahead import window_bytes
from storage.tier import PAGE_BYTES

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_write_when.py"
HOST, SSD = 240, 6000
"""Blocks. The SSD holds the whole trace: recycling by segments has its own tests."""

NEW_MAX = 4
SECONDS_BETWEEN = 2.0


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("bench_write_when", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def conversations(seed: int) -> Trace:
    """Turns of conversations that share system prompts; some come back late, many never."""
    rng = random.Random(seed)
    parents: list[int] = []

    def grow(path: list[int], count: int) -> list[int]:
        path = list(path)
        for _ in range(count):
            parents.append(path[-1] if path else NO_BLOCK)
            path.append(len(parents) - 1)
        return path

    prompts = [grow([], rng.randrange(1, 5)) for _ in range(4)]
    open_ones: list[list[int]] = []
    requests = []
    for number in range(400):
        if open_ones and rng.random() < 0.55:
            at = rng.randrange(max(0, len(open_ones) - 40), len(open_ones))
            path = grow(open_ones.pop(at), rng.randrange(1, 6))
        else:
            path = grow(rng.choice(prompts), rng.randrange(2, 20))
        open_ones.append(path)
        requests.append(Request(number * SECONDS_BETWEEN, len(path), path, len(path)))
    return Trace("conversations", 1, requests, parents)


async def both(
    program: Any, folder: Path, when: WriteWhen, first_new: int | None, records_per_hour: int
) -> tuple[ReplayResult, Any]:
    trace = conversations(7)
    assert sum(request.block_count for request in trace.requests) > 5_000
    bytes_per_day = 24 * records_per_hour * program.RECORD_BYTES
    options = ReplayOptions(
        host=Amount(blocks=HOST),
        ssd=Amount(blocks=SSD),
        admission=Admission(first_new),
        write_when=when,
        write_budget_bytes=bytes_per_day or None,
        block_bytes=program.RECORD_BYTES,
    )
    policies = CachePolicies(
        ssd_admission="all" if first_new is None else "first_new",
        ssd_new_blocks_max=first_new or 1,
        ssd_write_bytes_per_day=bytes_per_day,
        ssd_write_when=when.value,
    )
    player = program.Player(folder, trace, HOST, SSD, policies)
    return replay(trace, options, with_optimum=False), await player.play()


@pytest.mark.parametrize("when", WriteWhen)
@pytest.mark.parametrize(("first_new", "records_per_hour"), [(None, 0), (NEW_MAX, 0), (None, 2000)])
async def test_hits_and_writes_of_the_replay_are_those_of_the_service(
    program: Any, tmp_path: Path, when: WriteWhen, first_new: int | None, records_per_hour: int
) -> None:
    """At commit the two are equal. When blocks leave: hits within 1 %, hits in memory, writes,
    hits lost and what leaves for want of budget within 3 %, beside the window that is written
    ahead. Of what is turned away ahead of its leaving, some is used again and stays."""
    found, played = await both(program, tmp_path, when, first_new, records_per_hour)
    assert played.declined > 0 or not (first_new or records_per_hour)
    if when is WriteWhen.COMMITTED:
        assert played.hits == found.hit_blocks
        assert played.host_hits == found.host_hit_blocks
        assert played.writes == found.ssd_block_writes
        assert (played.over_budget, played.lost_hits) == turned_away(found)
        return
    window = window_bytes(program.LIMITS, HOST * PAGE_BYTES) // PAGE_BYTES
    assert played.hits == pytest.approx(found.hit_blocks, rel=0.01)
    assert played.host_hits == pytest.approx(found.host_hit_blocks, rel=0.03)
    assert played.writes == pytest.approx(found.ssd_block_writes, rel=0.03, abs=window)
    over_budget, lost_hits = turned_away(found)
    if not first_new:
        assert played.declined == pytest.approx(over_budget, rel=0.03, abs=window)
        assert played.declined <= played.over_budget <= 1.15 * over_budget
    assert played.lost_hits == pytest.approx(lost_hits, rel=0.03, abs=window)


def turned_away(found: ReplayResult) -> tuple[int, int]:
    """Blocks that the budget turned away, and hits lost by budget and rule."""
    lost = sum(each.lost_hits for each in (found.over_budget, found.refused) if each is not None)
    return found.over_budget.blocks if found.over_budget is not None else 0, lost


async def test_within_a_budget_writing_late_finds_more(program: Any, tmp_path: Path) -> None:
    played = {}
    for when in WriteWhen:
        (tmp_path / when.value).mkdir()
        _, played[when] = await both(program, tmp_path / when.value, when, None, 2000)
    late, soon = played[WriteWhen.LEAVING], played[WriteWhen.COMMITTED]
    assert late.hits > soon.hits
    assert late.writes == pytest.approx(soon.writes, rel=0.05)


async def test_without_one_it_only_puts_off_what_memory_still_holds(
    program: Any, tmp_path: Path
) -> None:
    _, late = await both(program, tmp_path, WriteWhen.LEAVING, None, 0)
    found = replay(conversations(7), ReplayOptions(host=Amount(blocks=HOST)), with_optimum=False)
    assert late.declined == 0
    assert late.writes + late.written_out == found.unique_blocks
