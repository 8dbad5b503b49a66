"""kill -9 while a cache stores, writes behind and recycles: what comes back is whole and right."""

import importlib.util
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cache_service.views import EndView, MatchView, ReadyView
from storage.host.arena import HostArena

PROGRAM = Path(__file__).parent / "programs" / "cache_core_storer.py"
ROUNDS = 5
CHAINS_PER_ROUND = 2000


def load_program() -> Any:
    spec = importlib.util.spec_from_file_location("cache_core_storer", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_and_kill(folder: Path, first: int, lines_before: int, write_when: str) -> int:
    """Kills a storer after so many lines; returns the last chain it said to be written."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(first), write_when],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        lines = [process.stdout.readline() for _ in range(lines_before)]
        assert all(lines), "the storer ended by itself"
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    whole = [line for line in lines if line.endswith("\n")]
    return int(whole[-1].split()[1])


async def test_what_a_killed_cache_had_written_is_whole_right_and_not_stranded(
    tmp_path: Path,
) -> None:
    program = load_program()
    rng = random.Random(3)
    folder = tmp_path / "ssd"
    for number in range(ROUNDS):
        first = number * CHAINS_PER_ROUND
        last = run_and_kill(folder, first, rng.randrange(1, 60), "committed")
        arena = HostArena(256 * 4096, extent_bytes=64 * 4096)
        cache = program.open_cache(folder, arena)
        cache.check_integrity()
        stats = cache.stats()
        assert stats.recovery is not None
        assert stats.tiers[1].used_bytes <= stats.tiers[1].capacity_bytes
        session_id = program.open_session(cache)
        found = cache.lookup(session_id, program.chain_of(last))
        assert found.present_count == 5, (number, last)
        for chain_number in range(max(first, last - 30), last + 4):
            await check(program, cache, session_id, program.chain_of(chain_number))
        await cache.drain()
        cache.check_integrity()
        arena.close()


async def test_a_killed_cache_that_writes_late_lost_what_memory_had_and_nothing_else(
    tmp_path: Path,
) -> None:
    """What left memory is found, whole and right; the last chains, never written, are not."""
    program = load_program()
    rng = random.Random(4)
    folder = tmp_path / "ssd"
    found_count = 0
    for number in range(ROUNDS):
        first = number * CHAINS_PER_ROUND
        last = run_and_kill(folder, first, rng.randrange(20, 60), "leaving")
        arena = HostArena(256 * 4096, extent_bytes=64 * 4096)
        cache = program.open_cache(folder, arena, "leaving")
        cache.check_integrity()
        session_id = program.open_session(cache)
        assert cache.lookup(session_id, program.chain_of(last)).present_count < 5
        for chain_number in range(max(first, last - 60), last + 4):
            chain = program.chain_of(chain_number)
            found_count += cache.lookup(session_id, chain).present_count
            await check(program, cache, session_id, chain)
        await cache.drain()
        cache.check_integrity()
        arena.close()
    assert found_count > 0


async def test_what_was_purged_before_the_kill_is_not_there_after_it(tmp_path: Path) -> None:
    program = load_program()
    rng = random.Random(5)
    folder = tmp_path / "ssd"
    for number in range(6):
        first = number * CHAINS_PER_ROUND
        last = run_and_kill(folder, first, rng.randrange(5, 25), "purge")
        arena = HostArena(256 * 4096, extent_bytes=64 * 4096)
        cache = program.open_cache(folder, arena)
        cache.check_integrity()
        for chain_number in range(first, last + 1):
            for block_hash in program.chain_of(chain_number)[2:]:
                assert cache._parts.index.tree.find(block_hash) == -1, (chain_number, last)
        # What was not purged stayed: the blocks that the chains share.
        assert len(cache._parts.index) > 0
        await cache.drain()
        cache.check_integrity()
        arena.close()


async def test_what_was_pinned_before_the_kill_is_pinned_and_whole_after_it(tmp_path: Path) -> None:
    program = load_program()
    rng = random.Random(6)
    for number in range(4):
        folder = tmp_path / str(number)
        last = run_and_kill(folder, 0, rng.randrange(1, 300), "pin")
        arena = HostArena(256 * 4096, extent_bytes=64 * 4096)
        cache = program.open_cache(folder, arena)
        cache.check_integrity()
        session_id = program.open_session(cache)
        said = {str(each) for each in range(0, min(last + 1, 35), 7)}
        views = [view async for view in cache.pins.views()]
        assert said <= {view.pin.owner for view in views}
        for owner in said:
            chain = program.chain_of(int(owner))
            assert cache.lookup(session_id, chain).present_count == 5, (owner, last)
            await check(program, cache, session_id, chain)
        await cache.drain()
        cache.check_integrity()
        arena.close()


async def check(program: Any, cache: Any, session_id: str, chain: Any) -> None:
    """Every block that is found is readable and holds the bytes that were stored."""
    events = [event async for event in cache.acquire(session_id, "r", chain, None)]
    match, end = events[0], events[-1]
    assert isinstance(match, MatchView)
    assert isinstance(end, EndView)
    assert end.ready_count == match.matched_count
    for view in events[1:-1]:
        assert isinstance(view, ReadyView)
        for position, slab in enumerate(view.slabs, view.first_index):
            assert bytes(cache.arena.view(slab)) == program.payload_of(chain[position])
    cache.release(session_id, match.lease_id, [])
    cache.check_integrity()
