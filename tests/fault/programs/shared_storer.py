"""Stores chain after chain into a cache whose shared tier is a directory, until it is killed.

Says "stored N" when chain N and all before it are there or given up. Two of these
write the same extents at the same time.
"""

import asyncio
import sys
import time
from pathlib import Path

from cache_service.hints import Hints
from cache_service.owner_runs import OwnerRuns
from cache_service.views import CacheLimits, Transport
from kvtier.keys import BlockHash
from storage.shared.tier import SharedLimits
from tests.shared.hosts import Host
from tests.unit.cache_service.conftest import BLOCK_BYTES, NAMESPACE, Client, chain_of

CHAINS = 400
BLOCKS = 21


def blocks_of(number: int) -> list[BlockHash]:
    return chain_of("killed", number // 10, *range(5), number, *range(BLOCKS - 8))


async def main(folder: Path, first: int) -> None:
    host = Host(folder, CacheLimits(), time.monotonic, 2048, shared_limits=SharedLimits(30, 30))
    opened = host.cache.open_session(NAMESPACE, BLOCK_BYTES, 64, "storer", Transport.SHARED_MEMORY)
    client = Client(host.cache, opened)
    for number in range(first, CHAINS):
        await client.store(blocks_of(number), Hints(owners=OwnerRuns(("acme",), (64,))))
        await host.written()
        print("stored", number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
