"""What does the service write to the SSD for a trace, and what does it find again?

Plays a trace, request after request, through the cache's own core over a real arena and a real SSD
tier: acquire the chain, store what is missing, release; then the disk catches up. Blocks are 64
bytes, so a slab is a page and a record two; hits and writes do not depend on the size. Beside it
the replay of the same trace.

    python benchmarks/bench_write_when.py TRACE [--host 10%] [--ssd 90%] [--requests N]
        [--window SHARE]... [--directory DIR] [--json]
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.replay.cache import WriteWhen
from cache_service.replay.options import Amount, ReplayOptions
from cache_service.replay.run import replay
from cache_service.replay.trace import NO_BLOCK, Request, Trace, read_trace
from cache_service.views import CacheLimits, CachePolicies, MatchView, Transport
from kvtier.blocks import Tier
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

BLOCK_BYTES = 64
RECORD_BYTES = 2 * PAGE_BYTES
SEGMENT_RECORDS = 1024
DEFAULT_WINDOWS = (0.0, 0.01, 0.02, 0.05, 0.125)

LIMITS = CacheLimits(
    session_ttl_seconds=1e9,
    lease_ttl_seconds=1e9,
    reservation_ttl_seconds=1e9,
    room_wait_seconds=20.0,
    max_blocks_per_call=1 << 20,
    read_ahead_bytes=1 << 20,
)
"""Who waits for the disk is patient."""


@dataclass(frozen=True)
class Played:
    """Of one trace. `writes` counts records, those written again by recycling too."""

    hits: int
    host_hits: int
    writes: int
    declined: int
    waits: int
    """Slabs for which a request had to wait for the disk."""
    over_budget: int
    lost_hits: int
    """Misses on blocks that the rule or the budget had turned away."""
    written_out: int
    """At the end, on top of `writes`."""
    seconds: float


class Counting(QuietListener):
    """What the end of the service wrote."""

    written_out_count = 0

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        self.written_out_count = written_count


class Player:
    """A cache with room for so many blocks, and one client."""

    def __init__(
        self,
        folder: Path,
        trace: Trace,
        host_blocks: int,
        ssd_blocks: int,
        policies: CachePolicies,
        limits: CacheLimits = LIMITS,
    ) -> None:
        self.trace = trace
        self.now = 0.0
        self.listener = Counting()
        self.hashes = [
            BlockHash(hashlib.sha256(number.to_bytes(8, "little")).digest())
            for number in range(trace.unique_blocks)
        ]
        records = segment_records(ssd_blocks)
        segment_bytes = PAGE_BYTES + records * RECORD_BYTES
        ssd = SsdTier.open(
            folder / "ssd",
            capacity_bytes=-(-ssd_blocks // records) * segment_bytes,
            segment_bytes=segment_bytes,
        )
        self.arena = HostArena(host_blocks * PAGE_BYTES, extent_bytes=PAGE_BYTES)
        self.cache = Cache(self.arena, ssd, limits, lambda: self.now, self.listener, policies)
        self.session_id = self.cache.open_session(
            NamespaceId(bytes(32)), BLOCK_BYTES, trace.block_tokens, "p", Transport.SHARED_MEMORY
        ).session_id

    async def play(self, step: Callable[[int], None] = lambda done: None) -> Played:
        """The whole trace, then an orderly end."""
        began = time.monotonic()
        hits = host_hits = 0
        for done, request in enumerate(self.trace.requests):
            self.now = request.time_seconds
            found, in_host = await self._serve(request)
            hits += found
            host_hits += in_host
            while self.cache.stats().pending_write_count:
                await asyncio.sleep(0.0005)
            step(done)
        stats = self.cache.stats()
        await self.cache.drain()
        self.arena.close()
        assert stats.admission is not None
        counters = stats.counters
        return Played(
            hits=hits,
            host_hits=host_hits,
            writes=counters.get("blocks_written", 0) + counters.get("blocks_relogged", 0),
            declined=counters.get("writes_declined", 0),
            waits=counters.get("room_waits", 0),
            over_budget=stats.admission.over_budget_count,
            lost_hits=stats.admission.lost_hit_count,
            written_out=self.listener.written_out_count,
            seconds=time.monotonic() - began,
        )

    async def _serve(self, request: Request) -> tuple[int, int]:
        chain = [self.hashes[block] for block in request.blocks]
        if not chain:
            return 0, 0
        events = [e async for e in self.cache.acquire(self.session_id, "r", chain, None)]
        match = events[0]
        assert isinstance(match, MatchView)
        view = await self.cache.reserve(self.session_id, "", chain)
        if view.reservation_id:
            sums = []
            for position, slab in zip(view.missing, view.slabs, strict=True):
                payload = chain[position] * 2
                self.arena.view(slab)[:BLOCK_BYTES] = payload
                sums.append(payload_checksum(chain[position], payload))
            await self.cache.commit(self.session_id, view.reservation_id, sums, False)
        if match.lease_id:
            self.cache.release(self.session_id, match.lease_id, [])
        return match.matched_count, match.tiers.count(Tier.HOST)


def segment_records(ssd_blocks: int) -> int:
    return max(8, min(SEGMENT_RECORDS, ssd_blocks // 32))


def first_requests(trace: Trace, count: int) -> Trace:
    """The trace's beginning; block numbers are in order of appearance."""
    requests = trace.requests[:count]
    blocks = 1 + max((max(r.blocks, default=NO_BLOCK) for r in requests), default=NO_BLOCK)
    return Trace(trace.name, trace.block_tokens, requests, trace.parents[:blocks])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--host", type=float, default=10, help="percent of the unique blocks")
    parser.add_argument("--ssd", type=float, default=90, help="the same")
    parser.add_argument("--requests", type=int, help="only the first ones")
    parser.add_argument("--window", type=float, action="append", help="share of the arena")
    parser.add_argument("--directory", type=Path, help="where the SSD tier lies")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    trace = read_trace(arguments.trace)
    if arguments.requests:
        trace = first_requests(trace, arguments.requests)
    host = Amount(share=arguments.host / 100)
    ssd = Amount(share=arguments.ssd / 100)
    rows = []
    for when in WriteWhen:
        records = segment_records(ssd.of(trace.unique_blocks))
        options = ReplayOptions(host=host, ssd=ssd, write_when=when, segment_blocks=records)
        found = replay(trace, options, with_optimum=False)
        rows.append(
            {
                "who": f"replay, {when.value}",
                "hits": found.hit_blocks,
                "host_hits": found.host_hit_blocks,
                "writes": found.ssd_block_writes,
            }
        )
    runs = [(WriteWhen.COMMITTED, 0.02)]
    runs += [(WriteWhen.LEAVING, share) for share in arguments.window or DEFAULT_WINDOWS]
    for when, share in runs:
        played = play_once(arguments.directory, trace, host, ssd, when, share)
        rows.append({"who": f"service, {when.value}", "window": share, **asdict(played)})
        print(rows[-1], file=sys.stderr)
    if arguments.json:
        about = {"trace": trace.name, "requests": len(trace.requests), "cpus": os.cpu_count()}
        print(json.dumps({**about, "machine": platform.machine(), "rows": rows}))
    else:
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def play_once(
    directory: Path | None, trace: Trace, host: Amount, ssd: Amount, when: WriteWhen, share: float
) -> Played:
    unique = trace.unique_blocks
    limits = replace(LIMITS, write_ahead_share=share)
    if when is WriteWhen.LEAVING:  # a batch is the window, or the window would be a batch
        share_bytes = int(share * host.of(unique) * PAGE_BYTES)
        limits = replace(limits, write_batch_bytes=max(RECORD_BYTES, share_bytes))
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        player = Player(
            Path(folder),
            trace,
            host.of(unique),
            ssd.of(unique),
            CachePolicies(ssd_write_when=when.value),
            limits,
        )
        return asyncio.run(player.play())


if __name__ == "__main__":
    sys.exit(main())
