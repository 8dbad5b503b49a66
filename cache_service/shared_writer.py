"""SharedWriter: what this host stores goes to the shared tier too, behind its commit.

    committed -> extents that are complete now -> queued by name -> pinned -> there? -> one object
                                \\-> dropped, counted by reason

Nobody waits for it, and what waits holds nothing: blocks that leave host memory before their turn
are dropped. Invariants: the blocks of an extent that is being written are pinned until that ends;
so many extents are written at a time; the queue is bounded; what is dropped is counted. Event loop
only; packing runs on the tier's threads.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.chains import Chain
from cache_service.listener import CacheListener
from cache_service.parts import Parts
from cache_service.reservation import Reservation
from cache_service.session import Session
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import StorageError
from storage.shared.extent import ExtentBlock
from storage.shared.levels import Extent, completed, level_sizes
from storage.shared.tier import ChainView, SharedTier
from storage.tier import NO_PARENT

__all__ = ["SharedWriter"]

log = logging.getLogger(__name__)

WRITES_MAX = 2
"""Extents at a time: so much of host memory is pinned, and so much memory taken beside it."""

QUEUE_MAX = 16_384
"""Extents that wait, about 500 bytes each."""

KNOWN_MAX = 65_536
"""Extents that are known to be there, so that nobody asks again."""

STOPS_MAX = 16
"""Of one commit; more would be many small objects."""

DRAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    name: str
    chain: ChainView
    extent: Extent
    parent: BlockHash


class SharedWriter:
    """One queue. `tally` hears what becomes of it."""

    def __init__(
        self, parts: Parts, tier: SharedTier, breaker: Breaker, tally: CacheListener
    ) -> None:
        self._index = parts.index
        self._arena = parts.arena
        self._room = parts.room
        self._tier = tier
        self._breaker = breaker
        self._tally = tally
        self._queue: OrderedDict[str, _Job] = OrderedDict()
        self._under_way: dict[str, list[int]] = {}
        """Rows, pinned, by name."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: OrderedDict[str, None] = OrderedDict()
        self.lost: Callable[[tuple[NamespaceId, int], Iterable[BlockHash]], None] = _nobody
        """Is told of extents of blocks that left the cache, which may have come to the tier."""

    @property
    def pending_count(self) -> int:
        """Extents that wait or are being written."""
        return len(self._queue) + len(self._under_way)

    def committed(self, session: Session, reservation: Reservation) -> None:
        """A reservation's blocks are visible."""
        if reservation.one_off or not reservation.missing:
            return
        chain = reservation.chain
        rows = self._index.tree.find_chain(chain)
        absent = np.flatnonzero(rows == ABSENT)
        end, first = int(absent[0]) if len(absent) else len(rows), reservation.missing[0]
        if end <= first:
            return
        in_host = self._index.tree.columns.array("slab_page")[rows] != NOWHERE

        def whole(start: int, stop: int) -> bool:
            return bool(in_host[start:stop].all())

        stops = self._stops(reservation, rows.tolist(), first, end)
        sizes = level_sizes(session.block_bytes)
        for extent in completed(sizes, first, end, whole, stops):
            self._offer(session, chain, extent)
        self._pump()

    def _stops(
        self, reservation: Reservation, rows: list[int], first: int, end: int
    ) -> Sequence[int]:
        """Where other chains may part from this one."""
        stops = {at for at in reservation.owners.ends if first <= at < end}
        stops |= {at + 1 for at in reservation.unit_ends if first <= at + 1 < end}
        if first and len(list(self._index.tree.children(rows[first - 1]))) > 1:
            stops.add(first)
        return sorted(stops)[:STOPS_MAX]

    def there(self, name: str) -> None:
        """An extent of that name was seen."""
        self._known[name] = None
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def settled(self) -> None:
        """Returns when none of the writes that are under way now is."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def gone(self) -> None:
        """Extents were deleted: nothing is known any more."""
        self._known.clear()

    def _offer(self, session: Session, chain: Chain, extent: Extent) -> None:
        name = self._tier.name_of(session.namespace_id, chain[extent.end - 1], extent.size)
        if name in self._known or name in self._queue or name in self._under_way:
            return
        if not self._breaker.ready or len(self._queue) >= QUEUE_MAX:
            reason = "queue_full" if self._breaker.ready else "unavailable"
            self._tally.shared_dropped(reason, extent.size)
            return
        parent = chain[extent.start - 1] if extent.start else NO_PARENT
        hashes = list(chain[extent.start : extent.end])
        view = ChainView(session.namespace_id, session.block_bytes, extent.start, hashes)
        self._queue[name] = _Job(name, view, extent, parent)

    def _pump(self) -> None:
        while self._queue and len(self._under_way) < WRITES_MAX:
            _, job = self._queue.popitem(last=False)
            if not self._breaker.ready:
                self._tally.shared_dropped("unavailable", job.extent.size)
                continue
            rows = self._rows(job)
            if not rows:
                self._tally.shared_dropped("left", job.extent.size)
                continue
            self._index.pin_run(rows)
            self._under_way[job.name] = rows
            task = asyncio.get_running_loop().create_task(self._run(job, rows))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _rows(self, job: _Job) -> list[int]:
        """Of its blocks; empty unless all of them are in host memory."""
        tree, namespace_id = self._index.tree, job.chain.namespace_id
        kind = tree.namespaces.number(namespace_id, job.chain.block_bytes)
        rows = [tree.find(name) for name in job.chain.hashes]
        if all(row != ABSENT and tree.in_host(row) and tree.kind(row) == kind for row in rows):
            return rows
        return []

    async def _run(self, job: _Job, rows: list[int]) -> None:
        try:
            await self._write(job, rows)
        except Exception:
            # A fault of ours must not leave blocks pinned for ever.
            log.exception("writing to the shared tier failed")
            self._tally.shared_dropped("failed", job.extent.size)
        finally:
            if not all(map(self._index.tree.cached, rows)):
                # It left while it was written: purged, or its bytes were bad.
                self._known.pop(job.name, None)
                self.lost((job.chain.namespace_id, job.chain.block_bytes), job.chain.hashes[-1:])
            del self._under_way[job.name]
            self._index.unpin_run(rows)
            self._room.changed()
            self._pump()

    async def _write(self, job: _Job, rows: list[int]) -> None:
        tree = self._index.tree
        if not self._breaker.begin():
            self._tally.shared_dropped("unavailable", job.extent.size)
            return
        size = job.chain.block_bytes
        payloads = [self._arena.view(tree.slab(row))[:size] for row in rows]
        blocks = [self._block(row) for row in rows]
        try:
            written = await self._tier.write(job.chain, job.extent, job.parent, blocks, payloads)
        except StorageError as error:
            self._breaker.failed()
            self._tally.shared_failed("write", str(error))
            self._tally.shared_dropped("failed", job.extent.size)
            return
        except BaseException:
            self._breaker.abandoned()
            self._tally.shared_dropped("shutdown", job.extent.size)
            raise
        self._breaker.succeeded()
        self.there(job.name)
        self._tally.shared_written(job.extent.size if written else 0, written)

    def _block(self, row: int) -> ExtentBlock:
        tree, index = self._index.tree, self._index
        return ExtentBlock(
            tree.block_hash(row),
            tree.checksum(row),
            index.expiries.of(row),
            bool(tree.columns.unit_end[row]),
            index.owners.of(row),
        )

    async def drain(self) -> None:
        """Writes what waits, for a bounded time; what is left then is given up."""
        ends = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self._tasks and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        while self._queue:
            _, job = self._queue.popitem()
            self._tally.shared_dropped("shutdown", job.extent.size)
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            # As long as packing an extent takes, at most: memory is read until then.
            await asyncio.wait(tasks)

    def pins(self) -> dict[int, int]:
        counts = Counter[int]()
        for rows in self._under_way.values():
            counts.update(rows)
        return counts

    def check_integrity(self) -> None:
        assert len(self._queue) <= QUEUE_MAX
        assert len(self._under_way) <= WRITES_MAX


def _nobody(_kind: tuple[NamespaceId, int], _hashes: Iterable[BlockHash]) -> None:
    return
