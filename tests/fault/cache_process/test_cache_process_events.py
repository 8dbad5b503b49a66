"""kill -9 of a service that is watched: the router's index is right again after its restart."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvtier.block_places import BlockPlaces
from kvtier.blocks import Tier
from kvtier.event_follower import EventFollower


async def test_a_router_outlives_its_service(
    start: Any, connect: Any, payloads: Any, directory: Path
) -> None:
    setting = f"unix_socket={directory / 'c.sock'}"
    first = start(setting)
    address = await asyncio.to_thread(first.ready)
    places, told = BlockPlaces(), asyncio.Event()
    follower = EventFollower(f"unix:{directory / 'c.sock'}", places, applied=told.set)
    following = asyncio.create_task(follower.run())

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                told.clear()
                await told.wait()

    chain = payloads.chain(1, 6)
    client = connect(address)
    await asyncio.to_thread(client.store, "r", chain, payloads.pages(chain))
    await until(lambda: all(places.tiers(each) == (Tier.HOST, Tier.SSD) for each in chain))
    before = places.position
    first.signal(signal.SIGKILL)
    await asyncio.to_thread(first.end)
    again = start(setting)
    await asyncio.to_thread(again.ready)
    await until(lambda: places.prefix(chain) == (Tier.SSD,) * 6)
    after = places.position
    assert before is not None
    assert after is not None
    assert after.instance_id != before.instance_id
    assert follower.current
    restored = payloads.blank(6)
    client = connect(again.said["listen"])
    await asyncio.to_thread(client.restore, "r", chain, restored, 10)
    await until(lambda: all(places.tiers(each) == (Tier.HOST, Tier.SSD) for each in chain))
    following.cancel()
    await asyncio.wait([following])
