"""SharedLoads: blocks of one acquire on their way from the shared tier into host memory.

    search -> extents -> read ahead: slabs -> object -> checked -> entered, parents first -> leased

Invariants: a block enters the index only whole, checked, and behind a parent that is cached; memory
that was taken for a read is freed by whoever ends it, also when the acquire is given up. What comes
is pinned by the acquire's lease before anybody else runs. Event loop only.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from cache_service.chains import Chain
from cache_service.listener import CacheListener
from cache_service.load_or_recompute import Pace, worth_loading
from cache_service.parts import Parts
from cache_service.read_rate import ReadRate
from cache_service.session import Session
from cache_service.shared_entering import Entering
from cache_service.shared_writer import SharedWriter
from kvtier.blocks import MissReason, Tier
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import CorruptBlockError, StorageError
from storage.shared.extent import ExtentBlock
from storage.shared.levels import Extent
from storage.shared.tier import ChainView, SharedTier
from storage.tier import Slab

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
    """Position in the chain of the first slab's block."""
    slabs: deque[Slab]
    blocks: list[ExtentBlock]


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
        self.slab_count = 0
        """Taken, and not in the index yet."""
        self.calls = itertools.count()
        self.reading: dict[int, float] = {}
        """When each read under way began."""
        self.loads: set[SharedLoad] = set()

    async def search(
        self, session: Session, chain: Chain, first: int, position: int, cost: float | None
    ) -> Beyond | None:
        """What continues `position` blocks of a chain whose named blocks begin with `first`."""
        if not self.breaker.begin():
            self.tally.shared_asked("unavailable", 0)
            return None
        view = ChainView(session.namespace_id, session.block_bytes, first, chain)
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
            extent = self._waiting.popleft()
            read = self._read(extent, not self._reads)
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
                    self._free(found.slabs)
        self._shared.loads.discard(self)
        self._entering.close()

    # -- one extent --------------------------------------------------------------------------------

    async def _read(self, extent: Extent, first: bool) -> "_Read | MissReason":
        shared, size = self._shared, self._session.block_bytes
        begin = max(extent.start, self._position)
        count = extent.end - begin
        async with shared.turns:
            slabs = await self._take(size, count, first)
            try:
                if len(slabs) < count:
                    self._free(slabs)
                    return MissReason.ARENA_FULL
                blocks = await self._fetch(extent, begin, slabs)
                if isinstance(blocks, MissReason):
                    self._free(slabs)
                    return blocks
            except BaseException:
                self._free(slabs)
                raise
        return _Read(begin, deque(slabs), blocks)

    async def _take(self, size: int, count: int, patient: bool) -> list[Slab]:
        room = self._shared.parts.room
        slabs = room.take_up_to(size, count)
        if not slabs and patient:
            writer = self._shared.parts.writer
            busy = _never if writer is None else writer.busy
            slab = await room.take_waiting(size, busy, room.patience())
            slabs = [] if slab is None else [slab]
            slabs += room.take_up_to(size, count - len(slabs)) if slabs else []
        self._shared.slab_count += len(slabs)
        return slabs

    def _free(self, slabs: "list[Slab] | deque[Slab]") -> None:
        while slabs:
            self._shared.slab_count -= 1
            self._shared.parts.room.give_back(slabs.pop())

    async def _fetch(
        self, extent: Extent, begin: int, slabs: Sequence[Slab]
    ) -> list[ExtentBlock] | MissReason:
        """The blocks from `begin` on, in their slabs."""
        shared, size = self._shared, self._session.block_bytes
        arena, clock = shared.parts.arena, shared.parts.clock
        into = {begin + i: arena.view(slab)[:size] for i, slab in enumerate(slabs)}
        if not shared.breaker.begin():
            return MissReason.UNAVAILABLE
        call, began = next(shared.calls), clock()
        shared.reading[call] = began
        try:
            blocks = await shared.tier.read(self._chain, extent, into)
        except CorruptBlockError as error:
            shared.breaker.succeeded()
            shared.tally.block_corrupt(Tier.SHARED)
            log.warning("the shared tier gave a bad extent", extra={"problem": str(error)})
            return MissReason.CORRUPT
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
        if blocks is None:
            shared.writer.gone()
            return MissReason.EVICTED
        shared.rate.landed(extent.size * size, began, clock())
        shared.tally.shared_read(len(slabs), len(slabs) * size)
        if self._entering.purged:
            return MissReason.PURGED
        name = self._chain.name(extent.end - 1)
        shared.writer.there(shared.tier.name_of(self._chain.namespace_id, name, extent.size))
        return blocks[begin - extent.start :]

    # -- into the index ----------------------------------------------------------------------------

    def _enter(self, read: _Read) -> list[int] | MissReason:
        """Enters blocks as a commit does, as far as they may be; the rest is let go."""
        rows: list[int] = []
        try:
            for block in self._to_enter(read):
                held = len(read.slabs)
                row = self._entering.enter(block, read.slabs)
                self._shared.slab_count -= held - len(read.slabs)
                if isinstance(row, MissReason):
                    self._cut = row
                    break
                if held == len(read.slabs):
                    # It was here already.
                    self._free([read.slabs.popleft()])
                rows.append(row)
                self._position += 1
        finally:
            self._free(read.slabs)
            self._entering.admit()
        return rows or self._cut or MissReason.EVICTED

    def _to_enter(self, read: _Read) -> list[ExtentBlock]:
        """Without what is before the next one, and what is behind the end."""
        first = self._position - read.first
        self._free([read.slabs.popleft() for _ in range(first)])
        return read.blocks[first : self._end - read.first]


def _never() -> bool:
    return False
