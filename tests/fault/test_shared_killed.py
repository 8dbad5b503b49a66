"""Services that are killed while they write to one directory, two of them the same extents."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_service.views import CacheLimits, Transport
from kvtier.blocks import MissReason
from storage.shared.object_store import open_object_store
from storage.shared.tier import SharedLimits, SharedTier
from tests.fault.programs.shared_storer import BLOCKS, CHAINS, blocks_of
from tests.shared.hosts import Acquired, Host, acquire
from tests.unit.cache_service.conftest import BLOCK_BYTES, NAMESPACE, Client

ROOT = Path(__file__).parents[2]
ROUNDS = 6


def started(folder: Path, first: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.fault.programs.shared_storer", str(folder), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def stored_until(process: "subprocess.Popen[str]", count: int) -> int:
    """The last chain that it said, once it said so many; -1: none."""
    last = -1
    assert process.stdout is not None
    for _ in range(count):
        line = process.stdout.readline()
        if not line:
            break
        last = int(line.split()[1])
    return last


@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_killed_while_it_writes_leaves_nothing_wrong(tmp_path: Path, seed: int) -> None:
    moments, folder, done = random.Random(seed), tmp_path / "shared", -1
    for _ in range(ROUNDS):
        pair = [started(folder, done + 1) for _ in range(2)]
        try:
            done = max(done, stored_until(pair[0], moments.randrange(1, 12)))
            time.sleep(moments.random() * 0.01)
        finally:
            for each in pair:
                each.send_signal(signal.SIGKILL)
                each.communicate(timeout=60)
    assert 0 <= done < CHAINS
    asyncio.run(read_all(folder, done))


async def read_all(folder: Path, done: int) -> None:
    host = Host(folder, CacheLimits(), time.monotonic, 4096, shared_limits=SharedLimits(30, 30))
    opened = host.cache.open_session(NAMESPACE, BLOCK_BYTES, 64, "reader", Transport.SHARED_MEMORY)
    client = Client(host.cache, opened)
    for number in range(min(CHAINS, done + 20)):
        chain = blocks_of(number)
        match, ready, end = await acquire(client, chain)
        client.check_payloads(chain, Acquired(match, ready, end))
        client.cache.release(client.session_id, match.lease_id, [])
        assert end.miss_reason in (MissReason.NONE, MissReason.NEVER_STORED)
        if number <= done:
            assert end.ready_count == BLOCKS, number
    assert not host.counters.get("blocks_corrupt_shared")
    await host.close()
    # What a killed writer left half done goes with the namespace, as all else.
    some = next(each for each in (folder / "kvtier").rglob("*.16"))
    some.with_name(f"{some.name}#1").write_bytes(b"half")
    tier = SharedTier(open_object_store(f"file://{folder}", {}), SharedLimits())
    assert await tier.forget_all(NAMESPACE) > 0
    left = [each for each in (folder / "kvtier").rglob("*") if each.is_file()]
    assert left == []
    await tier.close()
