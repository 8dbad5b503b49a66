"""What does it cost a store that its blocks are told to watchers?

In this process, without copies and without a network, on a full cache, so that every block stored
evicts one: the index alone, followed and not, in turns; the core's whole work for such a store, for
comparison; and how long the loop is taken by the largest messages a watcher asks for.

    python benchmarks/bench_events.py [--blocks 1 16 256 1024] [--rounds 41] [--json FILE]
"""

import argparse
import asyncio
import gc
import json
import platform
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_service.block_tree import NOWHERE
from cache_service.cache import Cache
from cache_service.edge.event_calls import watch_message
from cache_service.events.log import EventLog
from cache_service.events.watching import Position, Watching
from cache_service.index import BlockIndex
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, Transport
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.choice import eviction_order
from storage.tier import PAGE_BYTES

CHAINS_HELD = 8
"""How many chains the arena has room for."""
BLOCK_BYTES = PAGE_BYTES - 96
NAMESPACE = NamespaceId(bytes(32))


def fresh_chain(count: int) -> list[BlockHash]:
    return [BlockHash(secrets.token_bytes(32)) for _ in range(count)]


class IndexAlone:
    """An index that is full, followed or not."""

    def __init__(self, blocks: int, followed: bool) -> None:
        self.blocks = blocks
        self.arena = HostArena(CHAINS_HELD * blocks * PAGE_BYTES)
        order = eviction_order("greedy_dual")
        self.index = BlockIndex(self.arena, order, eviction_order("greedy_dual"), 65_536)
        self.log = EventLog(self.index, CacheLimits()) if followed else None

    def store(self) -> float:
        """Seconds: evicts what a chain needs, then enters it, and settles."""
        index, chain = self.index, fresh_chain(self.blocks)
        start = time.perf_counter()
        slabs = []
        for _ in chain:
            slab = self.arena.allocate(BLOCK_BYTES)
            victim = index.host_victim() if slab is None else None
            slabs.append(slab if victim is None else index.evict_host(victim))
        copies, parent = [], NOWHERE
        for block_hash, slab in zip(chain, slabs, strict=True):
            parent = index.add(block_hash, parent, NAMESPACE, BLOCK_BYTES)
            copies.append((parent, slab, 0))
        index.put_host_many(copies)
        if self.log is not None:
            self.log.settle()
        return time.perf_counter() - start


class Core:
    """A whole core that is full."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.arena = HostArena(CHAINS_HELD * blocks * PAGE_BYTES)
        limits = CacheLimits(max_blocks_per_call=2 * blocks)
        self.cache = Cache(self.arena, None, limits, time.monotonic, QuietListener())
        self.session = self.cache.open_session(
            NAMESPACE, BLOCK_BYTES, 64, "bench", Transport.SHARED_MEMORY
        ).session_id

    async def store(self) -> float:
        """Seconds of one reserve and its commit."""
        chain = fresh_chain(self.blocks)
        start = time.perf_counter()
        view = await self.cache.reserve(self.session, "", chain)
        sums = [0] * len(view.missing)
        await self.cache.commit(self.session, view.reservation_id, sums, False)
        return time.perf_counter() - start


async def measure(blocks: int, rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[], float]] = {
        "index_alone": IndexAlone(blocks, False).store,
        "index_followed": IndexAlone(blocks, True).store,
    }
    core = Core(blocks)
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "core")}
    for turn in range(CHAINS_HELD + rounds):
        for name in sorted(ways, reverse=turn % 2 == 0):
            seconds[name].append(ways[name]())
        seconds["core"].append(await core.store())
    # Of each turn, what following added: a busy machine slows both of its stores.
    turns = zip(seconds["index_alone"], seconds["index_followed"], strict=True)
    seconds["following_adds"] = [followed - alone for alone, followed in turns]
    medians = {
        f"{name}_us_per_block": round(statistics.median(values[CHAINS_HELD:]) * 1e6 / blocks, 2)
        for name, values in seconds.items()
    }
    return {"blocks_per_store": blocks, **medians}


async def measure_messages(rounds: int) -> dict[str, Any]:
    """Milliseconds of the loop for the largest messages, from asking to the bytes."""
    cache = Core(2048)
    for _ in range(CHAINS_HELD):
        await cache.store()
    watching: Watching = cache.cache.watching
    after = Position(cache.cache.instance_id, watching.last_sequence - 4096)
    found = {}
    for name, place, snapshot in (("events", after, False), ("snapshot", None, True)):
        times = []
        for _ in range(rounds):
            watch = watching.watch(place, snapshot)
            start = time.perf_counter()
            view = await anext(watch)
            message = watch_message(view).SerializeToString()
            times.append(time.perf_counter() - start)
            await watch.aclose()
        count = sum(run.count for run in (*view.events, *view.blocks))
        median = round(statistics.median(times) * 1e3, 2)
        found[name] = {"count": count, "bytes": len(message), "milliseconds": median}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {chosen.rounds} rounds")
    gc.freeze()
    results = []
    for blocks in chosen.blocks:
        results.append(asyncio.run(measure(blocks, chosen.rounds)))
        print(json.dumps(results[-1]))
    messages = asyncio.run(measure_messages(chosen.rounds))
    print(json.dumps(messages))
    if chosen.json:
        chosen.json.write_text(json.dumps({"results": results, "messages": messages}, indent=2))


if __name__ == "__main__":
    main()
