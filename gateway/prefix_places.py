"""What is known of where a prompt's blocks are: each worker's pages, and its cache service's tiers.

Cache services tell theirs as a stream of events, each followed into an index of its own
(`kvtier.event_follower`), anew from a snapshot after a gap. Pages tell nothing: what a worker was
asked lately is taken for what they have, in the order of use, as many blocks as it has pages. All
of it is a hint, which makes an answer sooner or later and never wrong. Event loop.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from kvtier.block_places import BlockPlaces
from kvtier.blocks import Tier
from kvtier.event_follower import EventFollower

__all__ = ["CacheViews", "PagesGuess", "PrefixFound", "find_prefix"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrefixFound:
    """Leading blocks of a prompt, by where the first of them that lacks ends the count."""

    page_blocks: int = 0
    host_blocks: int = 0
    ssd_blocks: int = 0


class PagesGuess:
    """The blocks that a worker's pages should have; the longest unused goes first."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def used(self, chain: Sequence[bytes]) -> None:
        """A request of this chain was sent there. Its last blocks are the first to go."""
        for block_hash in reversed(chain[: self._capacity]):
            self._blocks[block_hash] = None
            self._blocks.move_to_end(block_hash)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


def find_prefix(
    chain: Sequence[bytes], pages: PagesGuess | None, places: BlockPlaces | None
) -> PrefixFound:
    """The longest prefix that a worker would hit."""
    counts = {Tier.GPU: 0, Tier.HOST: 0, Tier.SSD: 0}
    for block_hash in chain:
        if pages is not None and block_hash in pages:
            counts[Tier.GPU] += 1
            continue
        tiers = places.tiers(block_hash) if places is not None else ()
        if not tiers:
            break
        counts[Tier.HOST if tiers[0] is Tier.HOST else Tier.SSD] += 1
    return PrefixFound(counts[Tier.GPU], counts[Tier.HOST], counts[Tier.SSD])


class CacheViews:
    """An index for each cache service, by the workers that use it."""

    def __init__(
        self, caches: Mapping[str, str], credentials: Mapping[str, grpc.ChannelCredentials | None]
    ) -> None:
        """`caches`: the address of each worker's cache service; `credentials` by that."""
        self._of_worker = caches
        self._places = {address: BlockPlaces() for address in set(caches.values())}
        self._followers = {
            address: EventFollower(address, places, credentials[address])
            for address, places in self._places.items()
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for address, follower in self._followers.items():
            task = asyncio.create_task(self._follow(address, follower), name=f"events {address}")
            self._tasks.append(task)

    async def _follow(self, address: str, follower: EventFollower) -> None:
        try:
            await follower.run()
        except grpc.RpcError as error:
            log.error(
                "a cache service refuses its events; requests are routed without them",
                extra={"cache": address, "code": error.code().name},
            )

    def of(self, worker: str) -> BlockPlaces | None:
        """None: nobody knows, or not any more."""
        address = self._of_worker.get(worker)
        if address is None or not self._followers[address].current:
            return None
        return self._places[address]

    def current_count(self) -> int:
        return sum(follower.current for follower in self._followers.values())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
