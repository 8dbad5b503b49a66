"""How long does an acquire of one block wait beside acquires of long prefixes, all from the SSD?

The service's core in this process over a real SSD tier, started anew in every round so that all
blocks are on the SSD. Long prefixes are acquired at once; until they are done, single blocks are
acquired one after the other. Prints one JSON object.

    python benchmarks/bench_read_order.py [--rounds 5] [--directory DIR] [--seed 1]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, Transport
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier

BLOCK_BYTES = 256 * 1024
LONG_BLOCKS = 768
ONES = 64
ARENA_BYTES = 1536 << 20
PAUSE_SECONDS = 0.005


def opened(directory: Path) -> Cache:
    ssd = SsdTier.open(directory, capacity_bytes=2 << 30, segment_bytes=64 << 20)
    limits = CacheLimits(
        session_ttl_seconds=600,
        lease_ttl_seconds=600,
        reservation_ttl_seconds=600,
        reservation_grace_seconds=30,
    )
    return Cache(HostArena(ARENA_BYTES), ssd, limits, time.monotonic, QuietListener())


def session_of(cache: Cache) -> str:
    space = NamespaceId(bytes(32))
    return cache.open_session(space, BLOCK_BYTES, 64, "bench", Transport.SHARED_MEMORY).session_id


async def closed(cache: Cache) -> None:
    await cache.drain()
    cache.arena.close()


async def store(cache: Cache, session: str, chain: list[BlockHash], payload: bytes) -> None:
    for end in range(64, len(chain) + 64, 64):
        view = await cache.reserve(session, "", chain[:end])
        sums = []
        for position, slab in zip(view.missing, view.slabs, strict=True):
            cache.arena.view(slab)[:BLOCK_BYTES] = payload
            sums.append(payload_checksum(chain[position], payload))
        await cache.commit(session, view.reservation_id, sums, False)
        while cache.stats().pending_write_count > 256:
            await asyncio.sleep(0.01)


async def acquire(cache: Cache, session: str, chain: list[BlockHash]) -> float:
    """Seconds until all is readable."""
    began = time.monotonic()
    ready = 0
    async for event in cache.acquire(session, "r", chain, None):
        ready = getattr(event, "ready_count", ready)
    assert ready == len(chain), (ready, len(chain))
    return time.monotonic() - began


async def one_round(directory: Path, longs: list[Any], ones: list[Any], count: int) -> Any:
    cache = opened(directory)
    session = session_of(cache)
    began, cpu = time.monotonic(), time.process_time()
    tasks = [asyncio.create_task(acquire(cache, session, chain)) for chain in longs[:count]]
    waits: list[float] = []
    for chain in ones:
        await asyncio.sleep(PAUSE_SECONDS)
        if count and all(task.done() for task in tasks):
            break
        waits.append(await acquire(cache, session, chain))
    await asyncio.gather(*tasks)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    await closed(cache)
    return waits, count * LONG_BLOCKS * BLOCK_BYTES / 1e9 / seconds, cpu


async def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    rng = random.Random(arguments.seed)
    payload = rng.randbytes(BLOCK_BYTES)
    longs = [[BlockHash(rng.randbytes(32)) for _ in range(LONG_BLOCKS)] for _ in range(4)]
    ones = [[BlockHash(rng.randbytes(32))] for _ in range(ONES)]
    cache = opened(directory)
    session = session_of(cache)
    for chain in [*longs, *ones]:
        await store(cache, session, chain, payload)
    await closed(cache)
    rows = []
    for count in (0, 1, 4):
        waits, rates, cpus = [], [], []
        for _ in range(arguments.rounds):
            found, rate, cpu = await one_round(directory, longs, ones, count)
            waits += found
            rates.append(rate)
            cpus.append(cpu)
        cuts = statistics.quantiles(waits, n=100)
        gigabytes = count * LONG_BLOCKS * BLOCK_BYTES / 1e9
        rows.append(
            {
                "long_acquires": count,
                "one_block_acquires": len(waits),
                "one_block_p50_ms": round(cuts[49] * 1e3, 2),
                "one_block_p99_ms": round(cuts[98] * 1e3, 2),
                "long_GBps": round(statistics.median(rates), 2) if count else None,
                "cpu_seconds_per_GB": round(statistics.median(cpus) / gigabytes, 3)
                if count
                else None,
            }
        )
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kvtier-order-") as name:
        found = asyncio.run(measure(arguments, Path(name) / "ssd"))
    machine = {"machine": platform.machine(), "cpus": os.cpu_count()}
    print(json.dumps({**machine, "block_bytes": BLOCK_BYTES, **found}, indent=1))


if __name__ == "__main__":
    main()
