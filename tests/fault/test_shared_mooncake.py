"""Mooncake whose master is silent, gone, or not there yet."""

import asyncio

import pytest

from storage.errors import TierIOError
from storage.shared.mooncake_store import MooncakeOptions, open_mooncake_store
from storage.shared.tier import SharedLimits, SharedTier
from tests.shared.chains import get, names, put_turns, view
from tests.shared.mooncake import mooncake_master

OPTIONS = MooncakeOptions(64 << 20, "tcp", "127.0.0.1")


async def test_a_partition_of_a_loaded_pool_costs_deadlines_and_no_wrong_byte() -> None:
    chains = [names(20, f"chain {number}") for number in range(40)]
    with mooncake_master() as master:
        store = open_mooncake_store(f"mooncake://{master.address}", OPTIONS)
        tier = SharedTier(store, SharedLimits(find_seconds=1, request_seconds=2))
        await put_turns(tier, chains[0], [20])
        loop = asyncio.get_running_loop()
        hits, misses, longest, ends = 0, 0, 0.0, loop.time() + 12

        async def load(number: int) -> None:
            nonlocal hits, misses, longest
            while loop.time() < ends:
                chain = chains[number % len(chains)]
                number += 1
                began = loop.time()
                try:
                    found = await tier.find(view(chain), 0)
                    if found:
                        hits += await get(tier, chain, found)
                    else:
                        await put_turns(tier, chain, [20])
                except TierIOError:
                    misses += 1
                    await asyncio.sleep(0.01)
                longest = max(longest, loop.time() - began)

        async def partition() -> None:
            await asyncio.sleep(2)
            master.pause()
            await asyncio.sleep(6)
            master.go_on()

        await asyncio.gather(partition(), *(load(number * 9) for number in range(4)))
        assert hits > 0
        assert misses > 0
        # A search, then reads or writes of three extents, each with its deadline.
        assert longest < 1 + 3 * (2 + 2) + 2
        # The threads' own calls end, too, and then it serves again.
        async with asyncio.timeout(60):
            while True:
                try:
                    if await get(tier, chains[0], await tier.find(view(chains[0]), 0)) == 20:
                        break
                except TierIOError:
                    await asyncio.sleep(0.2)
        await tier.close()


async def test_a_master_that_is_not_there_is_an_error_and_no_start_waits_for_it() -> None:
    with mooncake_master():
        pass  # skips where Mooncake is not installed
    tier = SharedTier(open_mooncake_store("mooncake://127.0.0.1:1", OPTIONS), SharedLimits(2, 2))
    for _ in range(2):
        with pytest.raises(TierIOError):
            await tier.find(view(names(4)), 0)
    await tier.close()
