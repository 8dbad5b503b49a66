"""Promoter: brings blocks from the SSD into host memory.

    load -> pinned -> [ slabs taken -> one call for all reads -> each lands by itself ] -> unpinned

Acquires that want the same block share one read, at the sooner of their turns; reads of several
take turns (`storage/ssd/read_order.py`). A read runs to its end once it began, whoever
still waits for it: its slab cannot be given away while a reader thread writes into it.

Invariant: a block is pinned while it is loaded; its slab enters the index only whole and verified.
Event loop only; the bytes move on the tier's reader threads.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cache_service.accounts import Account
from cache_service.index import BlockIndex
from cache_service.listener import CacheListener
from cache_service.read_rate import ReadRate
from cache_service.room import HostRoom
from cache_service.segment_reads import SegmentReads
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.suspects import Suspects
from kvtier.blocks import MissReason, Tier
from storage.errors import CorruptBlockError, StorageError, TierBusyError
from storage.host.arena import HostArena
from storage.ssd.read_order import ReadFlow
from storage.ssd.reader import BlockRead
from storage.tier import Slab

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["Promoter"]

log = logging.getLogger(__name__)

BUSY_BYTES = 4 * 1024 * 1024
"""Reads that began with fewer under way say little of what the disk gives."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A read that began: the row it is for, the slab it fills."""

    row: int
    slab: Slab
    read: BlockRead


class _Load(NamedTuple):
    """A block on its way, and the acquire that asked for it first."""

    ended: "asyncio.Future[MissReason]"
    flow: ReadFlow


class Promoter:
    """Loads in flight, one for a block."""

    def __init__(
        self,
        ssd: "SsdTier",
        arena: HostArena,
        index: BlockIndex,
        room: HostRoom,
        writer: SsdWriter,
        reads: SegmentReads,
        health: SsdHealth,
        suspects: Suspects,
        listener: CacheListener,
        clock: Callable[[], float],
    ) -> None:
        self._ssd = ssd
        self._arena = arena
        self._index = index
        self._room = room
        self._writer = writer
        self._reads = reads
        self._health = health
        self._suspects = suspects
        self._listener = listener
        self._clock = clock
        self.read_rate = ReadRate()
        """For reading only."""
        self._loads: dict[int, _Load] = {}
        self._claims: dict[int, tuple[Account, int]] = {}
        """What loads count on accounts, in payload bytes."""
        self._groups: set[asyncio.Task[None]] = set()
        self.under_way_bytes = 0
        """Payload bytes of reads under way. For reading only."""
        self._reading: dict[int, float] = {}
        """When each call for reads that has not ended began, the oldest first."""
        self._calls = itertools.count()

    def load(self, rows: Sequence[int], flow: ReadFlow) -> "asyncio.Future[MissReason]":
        """Starts the loads of blocks that follow each other, where none is under way; those that
        are, for others, go sooner where `flow` needs them sooner.

        Returns the first one's. NONE: that block is in memory now. Only the first waits for room;
        the others are ahead of need and end with ARENA_FULL when there is none at once.
        REQUIRES: the blocks are cached and not in host memory; at least one.
        """
        loop = asyncio.get_running_loop()
        new, shared = [], []
        for row in rows:
            load = self._loads.get(row)
            if load is None:
                new.append(row)
                self._index.pin(row)
                self._loads[row] = _Load(loop.create_future(), flow)
            elif load.flow is not flow:
                shared.append(row)
        first = self._loads[rows[0]].ended
        if shared:
            tree = self._index.tree
            self._ssd.read_sooner((tree.location(row) for row in shared if tree.on_ssd(row)), flow)
        if new:
            group = loop.create_task(self._load(new, flow, patient=new[0] == rows[0]))
            self._groups.add(group)
            group.add_done_callback(self._groups.discard)
        return first

    @property
    def loading_count(self) -> int:
        """Loads in flight; each holds at most one slab that the index does not know yet."""
        return len(self._loads)

    def judged_rate(self, now: float) -> float | None:
        """Payload bytes a second to decide by; see `ReadRate.judged`."""
        return self.read_rate.judged(now, self._reading_since)

    def silent_seconds(self, now: float) -> float:
        """Since anything came from the SSD, while it was asked for something."""
        return self.read_rate.silent_seconds(now, self._reading_since)

    @property
    def _reading_since(self) -> float | None:
        return next(iter(self._reading.values()), None)

    async def drain(self) -> None:
        """Returns when no read is in flight."""
        while self._groups:
            await asyncio.wait(set(self._groups))

    def pins(self) -> dict[int, int]:
        return dict.fromkeys(self._loads, 1)

    # -- a group of loads --------------------------------------------------------------------------

    async def _load(self, rows: Sequence[int], flow: ReadFlow, patient: bool) -> None:
        reads: list[_Read] = []
        try:
            for row in rows:
                read = await self._ready(row, patient and row == rows[0])
                if read is not None:
                    reads.append(read)
        except BaseException:
            # A fault of ours, or the end of the loop: nobody may wait for ever.
            for read in reads:
                self._arena.free(read.slab)
            for row in rows:
                if row in self._loads:
                    self._end(row, MissReason.UNAVAILABLE)
            raise
        await self._read(reads, flow)

    async def _ready(self, row: int, patient: bool) -> _Read | None:
        """A read with a slab to fill; None when the load ended here."""
        tree = self._index.tree
        size = tree.payload_bytes(row)
        if not await self._claim(row, size, patient):
            self._end(row, MissReason.QUOTA)
            return None
        asker = self._claims[row][0] if row in self._claims else None
        if patient:
            wait = (self._writer.busy, self._room.patience())
            slab = await self._room.take_waiting(size, *wait, asker)
        else:
            slab = self._room.take(size, asker)
        if slab is None:
            self._end(row, MissReason.ARENA_FULL)
        elif not tree.on_ssd(row):
            self._arena.free(slab)
            self._end(row, self._index.absences.reason(tree.block_hash(row)))
        else:
            view = self._arena.view(slab)
            return _Read(row, slab, BlockRead(tree.ssd_record(row), tree.location(row), view))
        return None

    async def _claim(self, row: int, size: int, patient: bool) -> bool:
        """Room on the block's account, until the load ends; False: its quota has none."""
        accounts = self._index.accounts
        account = None if accounts is None else accounts.of_row(row)
        if accounts is None or account is None:
            return True
        if patient:
            wait = (self._writer.busy, self._room.patience())
            claimed = await self._room.claim_waiting(account, size, 1, *wait)
        else:
            claimed = self._room.claim(account, size, 1)
        if claimed:
            self._claims[row] = account, size
        else:
            accounts.unclaim_host(account, 0)
        return bool(claimed)

    async def _read(self, reads: Sequence[_Read], flow: ReadFlow) -> None:
        """One call for all; each block is in memory as soon as its own bytes are."""
        if not reads:
            return
        began, call = self._clock(), next(self._calls)
        left = set(range(len(reads)))
        for each in reads:
            self._reads.begin(each.read.location.segment_id)
            self.under_way_bytes += each.read.record.payload_bytes
        self._reading[call] = began
        busy = self.under_way_bytes >= BUSY_BYTES

        def landed(position: int, error: Exception | None) -> None:
            left.discard(position)
            self._land(reads[position], error, began, busy)

        try:
            await self._ssd.read_many([each.read for each in reads], landed, flow)
        except Exception as error:
            # None of what is left was begun. What the tier does not promise to raise is a fault of
            # ours; nobody may wait for ever over it, and no slab may be lost.
            if not isinstance(error, StorageError):
                log.exception("reading blocks from the SSD failed")
            for position in sorted(left):
                landed(position, error)
        finally:
            del self._reading[call]

    def _land(self, read: _Read, error: Exception | None, began: float, busy: bool) -> None:
        self._reads.end(read.read.location.segment_id)
        self.under_way_bytes -= read.read.record.payload_bytes
        try:
            self._settle(read, error, began, busy)
        finally:
            if read.row in self._loads:
                self._end(read.row, MissReason.UNAVAILABLE)

    def _settle(self, read: _Read, error: Exception | None, began: float, busy: bool) -> None:
        tree, row = self._index.tree, read.row
        reason = self._outcome(read, error)
        if reason is MissReason.NONE and tree.cached(row) and not tree.in_host(row):
            self._index.put_host(row, read.slab, read.read.record.checksum)
            now, payload_bytes = self._clock(), read.read.record.payload_bytes
            self.read_rate.landed(payload_bytes, began, now, busy)
            self._listener.blocks_promoted(1, payload_bytes, now - began)
        else:
            self._arena.free(read.slab)
        in_host = tree.cached(row) and tree.in_host(row)
        self._end(row, MissReason.NONE if in_host else reason)

    def _outcome(self, read: _Read, error: Exception | None) -> MissReason:
        tree, row, block_hash = self._index.tree, read.row, read.read.record.block_hash
        if isinstance(error, CorruptBlockError):
            self._listener.block_corrupt(Tier.SSD)
            self._drop(row, MissReason.CORRUPT)
            return MissReason.CORRUPT
        if isinstance(error, TierBusyError):
            return MissReason.UNAVAILABLE  # the disk is well, there is only too much to do
        if error is not None:
            self._health.failed()
            self._listener.ssd_failed("read", str(error))
            if self._suspects.failed(block_hash):
                self._drop(row, MissReason.UNAVAILABLE)
            return MissReason.UNAVAILABLE
        self._health.succeeded()
        self._suspects.cleared(block_hash)
        if not tree.on_ssd(row) or tree.ssd_record(row).checksum != read.read.record.checksum:
            # It left the SSD meanwhile, as the descendant of a corrupt block.
            return self._index.absences.reason(block_hash)
        return MissReason.NONE

    def _end(self, row: int, reason: MissReason) -> None:
        self._loads.pop(row).ended.set_result(reason)
        claim = self._claims.pop(row, None)
        if claim is not None and self._index.accounts is not None:
            self._index.accounts.unclaim_host(*claim)
        self._index.unpin(row)
        self._room.changed()

    def _drop(self, row: int, reason: MissReason) -> None:
        """What cannot be read is no longer cached: else nobody could store it again."""
        if self._index.tree.on_ssd(row):
            self._writer.forget(self._index.drop_ssd(row, reason))
