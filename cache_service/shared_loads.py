"""SharedLoads: blocks of one acquire on their way from the shared tier into host memory.

    search -> extents -> read ahead: object -> slabs -> checked -> entered, parents first -> leased

Invariants: a block enters the index only whole, checked, and behind a parent that is cached; memory
that was taken for a read is freed by whoever ends it, also when the acquire is given up. What comes
is pinned by the acquire's lease before anybody else runs. Event loop only.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from cache_service.chains import Chain
from cache_service.hints import ChainPlace
from cache_service.listener import CacheListener
from cache_service.load_or_recompute import Pace, worth_loading
from cache_service.parts import Parts
from cache_service.read_rate import ReadRate
from cache_service.session import Session
from cache_service.shared_entering import Entering
from cache_service.shared_room import LoadRoom, Taken
from cache_service.shared_writer import SharedWriter
from kvtier.blocks import MissReason, Tier
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import CorruptBlockError, StorageError
from storage.shared.extent import ExtentBlock
from storage.shared.levels import Extent
from storage.shared.tier import ChainView, Fetched, SharedTier

__all__ = ["Beyond", "SharedLoad", "SharedLoads"]

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""Extents that one acquire has under way."""

READS_MAX = 8
"""Extents under way altogether: each takes its size in memory, beside the arena."""

PATIENCE_MIN = 0.05
"""Seconds that an extent is waited for although computing might be faster."""


class Beyond(NamedTuple):
    """What the shared tier has of a chain, from some block on."""

    chain: ChainView
    extents: list[Extent]
    end: int
    """Blocks of the whole chain up to there."""


class _Read(NamedTuple):
    """An extent in memory that nobody knows of yet."""

    first: int
    """Position in the chain of the first block."""
    taken: Taken
    blocks: list[ExtentBlock]
    """As many."""


class SharedLoads:
    """What all loads have in common: the tier, its pace, how many may read."""

    def __init__(
        self,
        parts: Parts,
        tier: SharedTier,
        breaker: Breaker,
        writer: SharedWriter,
        purged: Callable[[NamespaceId, int, BlockHash], bool],
        tally: CacheListener,
    ) -> None:
        """`purged`: whether the extent that ends with a block is to be deleted, and only still
        there."""
        self.parts = parts
        self.tier = tier
        self.breaker = breaker
        self.writer = writer
        self.tally = tally
        self._purged = purged
        self.rate = ReadRate()
        self.turns = asyncio.Semaphore(READS_MAX)
        self.room = LoadRoom(parts)
        self.calls = itertools.count()
        self.reading: dict[int, float] = {}
        """When each read under way began."""
        self.loads: set[SharedLoad] = set()

    async def search(
        self, session: Session, chain: Chain, place: ChainPlace, position: int, cost: float | None
    ) -> Beyond | None:
        """What continues `position` blocks of a chain, whose first named one is at `place`."""
        if not self.breaker.begin():
            self.tally.shared_asked("unavailable", 0)
            return None
        before = place.parent_hash or None
        view = ChainView(session.namespace_id, session.block_bytes, place.first, chain, before)
        try:
            extents = await self.tier.find(view, position)
        except StorageError as error:
            self.breaker.failed()
            self.tally.shared_failed("search", str(error))
            self.tally.shared_asked("failed", 0)
            return None
        except BaseException:
            self.breaker.abandoned()
            raise
        self.breaker.succeeded()
        extents = list(takewhile(lambda each: not self._left_over(view, each), extents))
        if not extents:
            self.tally.shared_asked("nothing", 0)
            return None
        end = position + self._worth(session, extents[-1].end - position, cost)
        extents = [each for each in extents if each.start < end]
        if not extents:
            self.tally.shared_asked("recompute_faster", 0)
            return None
        self.tally.shared_asked("found", end - position)
        return Beyond(view, extents, end)

    def _left_over(self, view: ChainView, extent: Extent) -> bool:
        last = view.name(extent.end - 1)
        return self._purged(view.namespace_id, view.block_bytes, last)

    def _worth(self, session: Session, count: int, cost: float | None) -> int:
        if cost is None:
            return count
        since = next(iter(self.reading.values()), None)
        rate = self.rate.judged(self.parts.clock(), since)
        return worth_loading(np.ones(count, bool), session.block_bytes, cost, Pace(rate))

    async def drain(self) -> None:
        for load in list(self.loads):
            await load.close()


class SharedLoad:
    """One acquire's. `start`, then `next` until it says why not, then `close`."""

    def __init__(
        self, shared: SharedLoads, session: Session, beyond: Beyond, position: int, anchor: int
    ) -> None:
        """`position`: blocks of the chain that are here. `anchor`: the row of the last one, which
        the first one to come continues, or NOWHERE."""
        self._shared = shared
        self._session = session
        self._chain = beyond.chain
        self._end = beyond.end
        self._position = position
        self._waiting = deque(each for each in beyond.extents if each.end > position)
        self._reads: deque[asyncio.Task[_Read | MissReason]] = deque()
        self._took: asyncio.Event | None = None
        """The last read has its slabs, or needs none."""
        self._cut: MissReason | None = None
        """Why no more may be entered."""
        self._size = session.block_bytes
        self._entering = Entering(shared.parts, session, anchor)
        self._closing: asyncio.Task[None] | None = None
        shared.loads.add(self)

    @property
    def anchor(self) -> int:
        """The row that the next block continues, or NOWHERE; pinned until `close`."""
        return self._entering.anchor

    @property
    def left(self) -> int:
        """Blocks still to come."""
        return self._end - self._position

    def start(self) -> None:
        """Reads ahead. At once, so that it overlaps with what is here."""
        while self._waiting and len(self._reads) < READ_AHEAD:
            turn, self._took = self._took, asyncio.Event()
            read = self._read(self._waiting.popleft(), turn, self._took, patient=not self._reads)
            self._reads.append(asyncio.get_running_loop().create_task(read))

    async def next(self, seconds_left: float, cost: float | None) -> list[int] | MissReason:
        """Rows of the blocks that came next; pin them at once. Or why none."""
        if self._cut is not None or not self._reads:
            return self._cut or MissReason.EVICTED
        reading = self._reads[0]
        patience = seconds_left
        if cost is not None:
            patience = min(patience, max(PATIENCE_MIN, cost * self.left))
        done, _ = await asyncio.wait({reading}, timeout=max(0.0, patience))
        if not done:
            faster = patience < seconds_left
            return MissReason.RECOMPUTE_FASTER if faster else MissReason.DEADLINE
        self._reads.popleft()
        try:
            found = reading.result()
        except Exception:
            # What the tier does not promise to raise is a fault of ours: a miss, and seen.
            log.exception("reading from the shared tier failed")
            return MissReason.UNAVAILABLE
        if isinstance(found, MissReason):
            self._cut = found
            return found
        self.start()
        return self._enter(found)

    async def close(self) -> None:
        """Gives up what is under way. Idempotent; goes on to its end when the caller is cancelled
        meanwhile, once or more."""
        if self not in self._shared.loads:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._waiting.clear()
        for reading in self._reads:
            reading.cancel()
        while self._reads:
            task = self._reads.popleft()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None:
                found = task.result()
                if isinstance(found, _Read):
                    found.taken.close()
        self._shared.loads.discard(self)
        self._entering.close()

    # -- one extent --------------------------------------------------------------------------------

    async def _read(
        self, extent: Extent, turn: asyncio.Event | None, took: asyncio.Event, *, patient: bool
    ) -> "_Read | MissReason":
        """`turn`: that of the read before, `took`: its own."""
        begin = max(extent.start, self._position)
        try:
            async with self._shared.turns:
                fetched = await self._fetch(extent)
                if isinstance(fetched, MissReason):
                    return fetched
                # In the chain's order: what cannot be used without the one before must not have
                # its room.
                if turn is not None:
                    await turn.wait()
                # Only now it is known whose they are.
                owners = fetched.owners[begin - extent.start : self._end - extent.start]
                taken = await self._shared.room.take(self._size, owners, patient)
                took.set()
                return await self._fill(fetched, begin, taken)
        finally:
            took.set()

    async def _fill(self, fetched: Fetched, begin: int, taken: Taken) -> "_Read | MissReason":
        try:
            blocks = await self._open(fetched, begin, taken) if len(taken) else taken.reason
            if isinstance(blocks, MissReason):
                taken.close()
                return blocks
        except BaseException:
            taken.close()
            raise
        return _Read(begin, taken, blocks)

    async def _fetch(self, extent: Extent) -> Fetched | MissReason:
        shared, clock = self._shared, self._shared.parts.clock
        if not shared.breaker.begin():
            return MissReason.UNAVAILABLE
        call, began = next(shared.calls), clock()
        shared.reading[call] = began
        try:
            fetched = await shared.tier.fetch(self._chain, extent)
        except CorruptBlockError as error:
            shared.breaker.succeeded()
            return self._corrupt(error)
        except StorageError as error:
            shared.breaker.failed()
            shared.tally.shared_failed("read", str(error))
            return MissReason.UNAVAILABLE
        except BaseException:
            shared.breaker.abandoned()
            raise
        finally:
            del shared.reading[call]
        shared.breaker.succeeded()
        if fetched is None:
            shared.writer.gone()
            return MissReason.EVICTED
        shared.rate.landed(extent.size * self._size, began, clock())
        return fetched

    async def _open(
        self, fetched: Fetched, begin: int, taken: Taken
    ) -> list[ExtentBlock] | MissReason:
        """The blocks from `begin` on, as many as have a slab, in their slabs."""
        shared, size, extent = self._shared, self._size, fetched.extent
        arena = shared.parts.arena
        into = {begin + i: arena.view(slab)[:size] for i, slab in enumerate(taken.slabs)}
        try:
            blocks = await shared.tier.open(fetched, into)
        except CorruptBlockError as error:
            return self._corrupt(error)
        if self._entering.purged:
            return MissReason.PURGED
        shared.tally.shared_read(len(taken), len(taken) * size)
        shared.writer.there(fetched.name)
        first = begin - extent.start
        return blocks[first : first + len(taken)]

    def _corrupt(self, error: CorruptBlockError) -> MissReason:
        self._shared.tally.block_corrupt(Tier.SHARED)
        log.warning("the shared tier gave a bad extent", extra={"problem": str(error)})
        return MissReason.CORRUPT

    # -- into the index ----------------------------------------------------------------------------

    def _enter(self, read: _Read) -> list[int] | MissReason:
        """Enters blocks as a commit does, as far as they may be; the rest is let go."""
        rows: list[int] = []
        taken, first = read.taken, self._position - read.first
        try:
            for _ in range(min(first, len(taken))):
                # It came before, as the beginning of this extent.
                taken.drop()
            for block in read.blocks[first:]:
                row = self._entering.enter(block, taken)
                if isinstance(row, MissReason):
                    self._cut = row
                    break
                rows.append(row)
                self._position += 1
            else:
                if taken.reason is not MissReason.NONE:
                    self._cut = taken.reason
        finally:
            taken.close()
            self._entering.admit()
        return rows or self._cut or MissReason.EVICTED
