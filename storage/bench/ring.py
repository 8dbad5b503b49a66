"""The SSD tier under the load of its owner: a full ring, segments recycled, hit blocks re-logged.

One task appends, as the service does; reads come from many. Payloads are random bytes in slabs of a
host arena. Invariant: what is read was verified by the tier; a wrong byte ends the benchmark.
"""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from kvtier.keys import BlockHash, NamespaceId
from storage.bench.floor import VerifiedRead
from storage.bench.memory import BlockMemory
from storage.bench.meter import Cost, measured
from storage.bench.settings import BenchSettings
from storage.ssd.key_ring import NO_ENCRYPTION, Encryption
from storage.ssd.read_order import ReadFlow
from storage.ssd.reader import BlockRead
from storage.ssd.tier import SsdTier
from storage.tier import NO_PARENT, PAGE_BYTES, BlockRecord, SegmentId, SsdLocation

__all__ = ["Ring"]

Place = tuple[BlockRecord, SsdLocation]
Item = tuple[BlockRecord, memoryview]

_NAMESPACE = NamespaceId(hashlib.sha256(b"kvtier bench storage").digest())
READ_AHEAD_BYTES = 16 << 20
"""Asked for in one call, at least 8 blocks: what one acquire of the service keeps in flight."""

_FREE_SEGMENTS_MIN = 2
_PREWRITE_LOOK_SECONDS = 0.5


class Ring:
    """An open tier of one block size, and the blocks in it, oldest first."""

    def __init__(
        self, directory: Path, block_bytes: int, settings: BenchSettings, *, encrypted: bool
    ) -> None:
        self._settings = settings
        self._block_bytes = block_bytes
        self._memory = BlockMemory(block_bytes)
        self._numbers = itertools.count()
        self._blocks: OrderedDict[BlockHash, Place] = OrderedDict()
        self._by_segment: dict[SegmentId, list[BlockHash]] = {}
        self._relog_due = 0.0
        self.tier = SsdTier.open(
            directory,
            capacity_bytes=settings.capacity_bytes,
            segment_bytes=settings.segment_bytes,
            encryption=Encryption((secrets.token_bytes(32),)) if encrypted else NO_ENCRYPTION,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tier.close()
        self._memory.close()

    # --- storing ------------------------------------------------------------------------------

    async def first_fill(self) -> Cost:
        """Stores into segments that nothing was ever written to, until two are left."""
        room = self._settings.segment_bytes * (self.tier.free_segment_count - _FREE_SEGMENTS_MIN)
        record = self.tier.record_bytes(self._block_bytes)
        return await self._store(room // record * self._block_bytes * 0.95)

    async def settle(self) -> None:
        """Fills the ring up to its last segments, and waits for pre-writing to come to an end."""
        while self.tier.free_segment_count >= _FREE_SEGMENTS_MIN:
            await self._append([self._next_item()])
        before = -1
        while (now := self.tier.stats().prewritten_bytes) != before:
            before = now
            await asyncio.sleep(_PREWRITE_LOOK_SECONDS)

    async def steady_store(self) -> Cost:
        """Stores one turn's worth into a full ring, freeing segments as it goes."""
        return await self._store(self._settings.round_bytes)

    async def single_stores(self) -> Cost:
        """Stores blocks one by one: each is durable before the next begins."""
        with measured() as cost:
            for _ in range(self._settings.single_blocks):
                item = self._next_item()
                began = time.perf_counter()
                await self._append([item])
                cost.block_seconds.append(time.perf_counter() - began)
                await self._make_room()
        cost.payload_bytes = self._settings.single_blocks * self._block_bytes
        return cost

    async def _store(self, payload_bytes: float) -> Cost:
        count = max(1, int(payload_bytes) // self._block_bytes)
        settings = self._settings
        record = self.tier.record_bytes(self._block_bytes)
        size = min(settings.batch_bytes, settings.segment_bytes - PAGE_BYTES)
        batch = max(1, min(settings.batch_blocks, size // record))
        items = [self._next_item() for _ in range(count)]  # named before: a tier is given names
        with measured() as cost:
            for start in range(0, count, batch):
                await self._make_room()
                await self._append(items[start : start + batch])
        cost.payload_bytes = count * self._block_bytes
        return cost

    async def _append(self, items: Sequence[Item]) -> None:
        locations = await self.tier.append(items)
        for (record, _), location in zip(items, locations, strict=True):
            self._place(record, location)

    def _next_item(self) -> Item:
        number = next(self._numbers)
        view, checksum = self._memory.source(number)
        block_hash = self._memory.block_hash(number)
        return (
            BlockRecord(block_hash, NO_PARENT, _NAMESPACE, self._block_bytes, checksum),
            view,
        )

    def _place(self, record: BlockRecord, location: SsdLocation) -> None:
        self._blocks[record.block_hash] = record, location
        self._blocks.move_to_end(record.block_hash)
        self._by_segment.setdefault(location.segment_id, []).append(record.block_hash)

    async def _make_room(self) -> None:
        while self.tier.free_segment_count < _FREE_SEGMENTS_MIN:
            await self._recycle_oldest()

    async def _recycle_oldest(self) -> None:
        oldest = next(iter(self._blocks.values()))[1].segment_id
        hashes = self._by_segment.pop(oldest)
        self._relog_due += len(hashes) * self._settings.relog_share
        kept = hashes[: int(self._relog_due)]
        self._relog_due -= len(kept)
        items = [self._blocks[block_hash] for block_hash in kept]
        for (record, _), location in zip(items, await self.tier.relog(items), strict=True):
            if location is None:
                raise SystemExit("a block of the benchmark came back corrupt")
            self._place(record, location)
        gone = hashes[len(kept) :]
        for block_hash in gone:
            del self._blocks[block_hash]
        await self.tier.forget(gone)
        await self.tier.recycle(oldest)

    # --- restoring ----------------------------------------------------------------------------

    async def cold_restore(self) -> Cost:
        """Reads the newest turn's worth from the disk, verified, oldest block first."""
        count = min(len(self._blocks), self._settings.round_bytes // self._block_bytes)
        places = iter(list(itertools.islice(reversed(self._blocks.values()), count))[::-1])
        with measured() as cost:
            targets = self._memory.targets
            ahead = max(8, READ_AHEAD_BYTES // self._block_bytes)
            groups = (targets[i : i + ahead] for i in range(0, len(targets), ahead))
            await asyncio.gather(*(self._read_into(group, places) for group in groups))
        cost.payload_bytes = count * self._block_bytes
        return cost

    async def _read_into(self, targets: Sequence[memoryview], places: Iterator[Place]) -> None:
        """Reads a few blocks in one call, as the service does for a chain, until none is left; its
        calls are of one flow, as those of an acquire."""
        flow = ReadFlow()
        # `places` is shared: each block is read by whoever is free.
        while chosen := list(itertools.islice(places, len(targets))):
            reads = [
                BlockRead(*place, target) for place, target in zip(chosen, targets, strict=False)
            ]
            await self.tier.read_many(reads, _must_be_whole, flow)

    async def floor(self, read: VerifiedRead) -> Cost:
        """The same amount of other bytes, into the same memory, with nothing but reading and
        hashing done to them."""
        return await asyncio.to_thread(read.run, self._memory.targets)

    async def single_restores(self) -> Cost:
        """Reads blocks one by one, from all over the ring."""
        target = self._memory.targets[0]
        places = list(self._blocks.values())
        step = max(1, len(places) // self._settings.single_blocks)
        chosen = places[::step][: self._settings.single_blocks]
        with measured() as cost:
            for place in chosen:
                began = time.perf_counter()
                await self.tier.read(*place, target)
                cost.block_seconds.append(time.perf_counter() - began)
        cost.payload_bytes = len(chosen) * self._block_bytes
        return cost

    async def warm_restore(self) -> Cost:
        """Copies a turn's worth out of host memory and verifies the copies, as a worker does."""
        settings = self._settings
        count = settings.round_bytes // self._block_bytes
        with measured() as cost:
            shares = (range(i, count, settings.threads) for i in range(settings.threads))
            await asyncio.gather(*(asyncio.to_thread(self._memory.copy_out, x) for x in shares))
        cost.payload_bytes = count * self._block_bytes
        return cost


def _must_be_whole(position: int, error: Exception | None) -> None:
    if error is not None:
        raise SystemExit(f"a block of the benchmark came back wrong: {error}")
