"""kill -9 at any point: every acknowledged block is back, byte for byte, and nothing else is."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from storage.ssd.tier import SsdTier
from tests.ssd.appender import block_number
from tests.ssd.blocks import CAPACITY_BYTES, SEGMENT_BYTES, read
from tests.ssd.watcher import watched_capacity

ROUNDS = 8
ROOT = Path(__file__).parents[2]


def run_and_kill(directory: Path, first: int, lines_before: int) -> list[str]:
    """Starts an appender, kills it after that many lines; what it said until it was dead."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ssd.appender", str(directory), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )
    assert process.stdout is not None
    with process.stdout:
        lines = [process.stdout.readline() for _ in range(lines_before)]
        assert all(lines), "the appender ended by itself"
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    # A kill may cut the last line short; an unfinished line acknowledges nothing.
    return [line.strip() for line in lines if line.endswith("\n")]


async def test_every_acknowledged_block_survives_kills_in_the_same_directory(tmp_path) -> None:
    rng = random.Random(20)
    directory = tmp_path / "ssd"
    acknowledged: set[int] = set()
    first = 0
    for _ in range(ROUNDS):
        maybe_forgotten: set[int] = set()
        forgotten: set[int] = set()
        with watched_capacity(directory, CAPACITY_BYTES):
            lines = run_and_kill(directory, first, rng.randrange(1, 150))
        for line in lines:
            word, _, number = line.partition(" ")
            if word == "stored":
                acknowledged.add(int(number))
            elif word == "forgetting":
                maybe_forgotten.add(int(number))
            elif word == "forgot":
                acknowledged.discard(int(number))
                maybe_forgotten.discard(int(number))
                forgotten.add(int(number))
        first = max(acknowledged, default=first) + 100
        first -= first % 3
        acknowledged = await check(directory, acknowledged, maybe_forgotten, first)
        assert acknowledged.isdisjoint(forgotten)


async def check(
    directory: Path, acknowledged: set[int], maybe_forgotten: set[int], first: int
) -> set[int]:
    """Returns the numbers of the blocks that are there."""
    tier = SsdTier.open(directory, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES)
    try:
        numbers = {block_number(n).hash: n for n in range(first)}
        found: set[int] = set()
        for record, location in tier.recovered():
            number = numbers[record.block_hash]
            assert await read(tier, record, location) == block_number(number).payload
            found.add(number)
        lost = acknowledged - maybe_forgotten - found
        assert not lost, f"acknowledged and gone: {sorted(lost)}"
        assert tier.report.problems == ()
        tier.check_integrity()
        files = list((directory / "segments").iterdir())
        assert sum(f.stat().st_size for f in files) <= CAPACITY_BYTES
        return found
    finally:
        await tier.close()


async def test_a_first_start_that_is_killed_can_be_started_again(tmp_path) -> None:
    """The parent looks for the directory's parts and kills as soon as each one appears."""
    for i, part in enumerate(["LOCK", "KVTIER-SSD", "segments", "index", "segments/000003.seg"]):
        directory = tmp_path / str(i)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ssd.appender", str(directory), "0"],
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        )
        while not (directory / part).exists():
            assert process.poll() is None, "the appender ended by itself"
        process.kill()
        process.wait()
        await check(directory, set(), set(), 3000)
