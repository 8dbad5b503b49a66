"""Stores chain after chain into a cache on the directory given, until it is killed.

Says on standard output, one line each: "written N" when chain N, and all before it that are still
cached, are durable on the SSD; of a cache that writes when blocks leave, that nothing waits. With
"purge" it takes the last three blocks of every chain out again at once, and says "purged N". With
"pin" it pins five chains, each said as "pinned N" once the SSD has it, and stores on.
"""

import asyncio
import hashlib
import random
import sys
import time
from pathlib import Path

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.purge_views import PurgeKind, PurgeTarget, SsdForgetting
from cache_service.views import CacheLimits, CachePolicies, Transport
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier

BLOCK_BYTES = 4096
SEGMENT_BYTES = 33 * 4096
SEGMENTS = 8


def chain_of(number: int) -> list[BlockHash]:
    """Five blocks; the first is shared by a hundred chains, the second by ten."""
    hashes, parent = [], b""
    for name in (number // 100, number // 10, number, "x", "y"):
        parent = hashlib.sha256(parent + str(name).encode()).digest()
        hashes.append(BlockHash(parent))
    return hashes


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


def open_cache(folder: Path, arena: HostArena, write_when: str = "committed") -> Cache:
    ssd = SsdTier.open(folder, capacity_bytes=SEGMENTS * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)
    policies = CachePolicies(ssd_write_when=write_when)
    return Cache(arena, ssd, CacheLimits(), time.monotonic, QuietListener(), policies)


def open_session(cache: Cache) -> str:
    namespace = NamespaceId(bytes(32))
    return cache.open_session(
        namespace, BLOCK_BYTES, 64, "storer", Transport.SHARED_MEMORY
    ).session_id


async def store(cache: Cache, session_id: str, chain: list[BlockHash]) -> None:
    view = await cache.reserve(session_id, "", chain)
    sums = []
    for position, slab in zip(view.missing, view.slabs, strict=True):
        payload = payload_of(chain[position])
        cache.arena.view(slab)[:] = payload
        sums.append(payload_checksum(chain[position], payload))
    if view.reservation_id:
        await cache.commit(session_id, view.reservation_id, sums, False)


async def store_and_purge(folder: Path, first: int) -> None:
    """At moments that differ, so that a chain is queued, being written or on the SSD by then."""
    cache = open_cache(folder, HostArena(64 * 4096, extent_bytes=16 * 4096))
    session_id, moments = open_session(cache), random.Random(first)
    for number in range(first, first + 100_000):
        chain = chain_of(number)
        await store(cache, session_id, chain)
        await asyncio.sleep(moments.choice([0, 0, 0.0002, 0.0005, 0.001, 0.003]))
        target = PurgeTarget(PurgeKind.PREFIX, NamespaceId(bytes(32)), chain[2])
        receipt = await cache.purging.start(target, dry_run=False)
        assert receipt.ssd_forgetting is SsdForgetting.DURABLE
        print("purged", number, flush=True)


async def store_and_pin(folder: Path, first: int) -> None:
    cache = open_cache(folder, HostArena(64 * 4096, extent_bytes=16 * 4096))
    session_id = open_session(cache)
    for number in range(first, first + 100_000):
        chain = chain_of(number)
        await store(cache, session_id, chain)
        pins = number % 7 == 0 and number < first + 35
        if pins:
            await cache.pins.pin(NamespaceId(bytes(32)), chain[-1], str(number), 3600)
        cache.tick()
        while cache.stats().pending_write_count:
            await asyncio.sleep(0.0005)
        print("pinned" if pins else "written", number, flush=True)


async def main(folder: Path, first: int, write_when: str) -> None:
    cache = open_cache(folder, HostArena(64 * 4096, extent_bytes=16 * 4096), write_when)
    session_id = open_session(cache)
    for number in range(first, first + 100_000):
        await store(cache, session_id, chain_of(number))
        if number % 3 == 0:
            while cache.stats().pending_write_count:
                await asyncio.sleep(0.0005)
            print("written", number, flush=True)


if __name__ == "__main__":
    place, start = Path(sys.argv[1]), int(sys.argv[2])
    others = {"purge": store_and_purge, "pin": store_and_pin}
    if sys.argv[3] in others:
        asyncio.run(others[sys.argv[3]](place, start))
    else:
        asyncio.run(main(place, start, sys.argv[3]))
