"""How long does the service take over its SSD after a start, and how much memory do blocks take?

    python -m cache_service.bench.restart DIRECTORY BLOCKS

Opens the SSD tier in DIRECTORY and builds the cache on it, exactly as the service does, in a
process of its own, so that the difference in resident memory is that of the blocks. Prints one JSON
object.
"""

import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from storage.bench.restart_data import SEGMENT_BYTES, capacity_bytes
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier

__all__ = ["main"]

_ARENA_BYTES = 64 << 20


async def measure(directory: Path, block_count: int) -> dict[str, float | int]:
    """Blocks the loop until the cache is ready: nobody else is on it."""
    arena = HostArena(_ARENA_BYTES)
    # The modules, which are not what is asked about; the service does so too (`server.py`).
    gc.collect()
    gc.freeze()
    before = _resident_bytes()
    began, cpu_began = time.perf_counter(), time.process_time()
    tier = SsdTier.open(
        directory, capacity_bytes=capacity_bytes(block_count), segment_bytes=SEGMENT_BYTES
    )
    opened = time.perf_counter()
    index_file_bytes = tier.stats().index_bytes
    kept_count = tier.report.kept_count
    cache = Cache(arena, tier, CacheLimits(), time.monotonic, QuietListener())
    ready, cpu_ready = time.perf_counter(), time.process_time()
    gc.collect()
    collected = time.perf_counter()
    gc.collect()
    full_collection = time.perf_counter() - collected
    after = _resident_bytes()
    await cache.drain()
    arena.close()
    return {
        "blocks": kept_count,
        "seconds": ready - began,
        "tier_seconds": opened - began,
        "cpu_seconds": cpu_ready - cpu_began,
        "index_bytes_per_block": (after - before) / max(1, kept_count),
        "index_file_bytes_per_block": index_file_bytes / max(1, kept_count),
        "full_collection_seconds": full_collection,
    }


def _resident_bytes() -> int:
    """Of this process, after what was freed went back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Entry of the process."""
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), int(sys.argv[2])))))


if __name__ == "__main__":
    main()
