"""WriteQueue: blocks that wait to be written to the SSD, parents before children.

    offer -> admission -> waiting (pinned) -> a batch -> done
                 \\------> deferred (not pinned, may be evicted before its turn) -> offered again
    keep  -> the same for a block that is about to leave host memory; what is before it goes along

Invariants: a queued block is pinned exactly once; its parent is on the SSD or queued before it; the
bytes of queued blocks stay within the share that waiting writes may hold, one block aside. Owned by
the SSD writer; event loop only.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cache_service.admission import Admission, WriteOffer, admit
from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.index import BlockIndex
from cache_service.ssd_admission import SsdAdmission
from cache_service.ssd_health import SsdHealth
from kvtier.keys import BlockHash
from storage.tier import PAGE_BYTES

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["WriteQueue"]

DEFERRED_MAX = 65_536


class WriteQueue:
    """What waits, what is being written, what comes later. Blocks are rows of the index."""

    def __init__(
        self,
        ssd: "SsdTier",
        index: BlockIndex,
        health: SsdHealth,
        admission: SsdAdmission,
        pending_bytes_max: int,
    ) -> None:
        self._ssd = ssd
        self._index = index
        self._health = health
        self._admission = admission
        # The first page of a segment is its header.
        self._segment_bytes = min(s.capacity_bytes for s in ssd.segments()) - PAGE_BYTES
        self._pending_bytes_max = pending_bytes_max
        self._waiting: deque[int] = deque()
        self._deferred: OrderedDict[BlockHash, None] = OrderedDict()
        """In order, each once. Not pinned: they may be evicted before their turn comes."""
        self._queued: set[int] = set()
        """Those that wait and those that are being written."""
        self._pending_bytes = 0

    def __len__(self) -> int:
        """Blocks that wait, are being written, or come later if they are still here then."""
        return len(self._queued) + len(self._deferred)

    @property
    def busy(self) -> bool:
        """True while blocks are on their way to the SSD, and will become free to evict."""
        return bool(self._queued)

    @property
    def due(self) -> bool:
        """True when there is something for a batch, now or once admission asks again."""
        return bool(self._waiting or self._deferred)

    def offer(self, rows: Iterable[int]) -> int:
        """Queues what admission lets in, with everything before it that is not on the SSD yet.

        Returns how many it turned away.
        """
        declined, before, answer = 0, NOWHERE, Admission.WRITE
        for row in rows:
            before, answer = row, self._enqueue_next(row, before, answer)
            block_hash = self._index.tree.block_hash(row)
            if answer is Admission.WRITE or block_hash in self._deferred:
                continue
            if answer is Admission.DEFER and len(self._deferred) < DEFERRED_MAX:
                self._deferred[block_hash] = None
            else:
                declined += 1
        return declined

    def keep(self, row: int) -> Admission:
        """Queues a block that is about to leave, with everything before it that the SSD lacks.

        Only the block itself must be wanted. WRITE: all of them are queued. DEFER: there was room
        for the first of them, at most; ask again.
        """
        if not self._admission.wanted(row):
            return Admission.DECLINE
        if not self._admission.affordable(row, self._record_bytes(row)):
            # Nor is what is before it written for its sake; that leaves by itself later.
            self._turn_away([row])
            return Admission.DECLINE
        answer = self._enqueue(row, last=row)
        return Admission.DECLINE if answer is Admission.OVER_BUDGET else answer

    def insist(self, row: int) -> Admission:
        """As `keep`, of a block that a pin names: whatever admission and budget say of it."""
        return self._enqueue(row, last=row, insisted=True)

    def offer_deferred(self) -> None:
        """Asks again about blocks that had to come later."""
        before, answer = NOWHERE, Admission.WRITE
        while self._deferred:
            block_hash = next(iter(self._deferred))
            row = self._index.tree.find(block_hash)
            if row != ABSENT:
                before, answer = row, self._enqueue_next(row, before, answer)
                if answer is Admission.DEFER:
                    return
            del self._deferred[block_hash]

    def next_batch(self, count_max: int, bytes_max: int) -> list[int]:
        """Waiting blocks that still can be written.

        A batch fits into one segment, so the open one's rest and one free segment hold it.
        """
        batch: list[int] = []
        tree, size = self._index.tree, 0
        bytes_max = min(bytes_max, self._segment_bytes)
        while self._waiting and len(batch) < count_max:
            row = self._waiting[0]
            record = self._record_bytes(row)
            if batch and size + record > bytes_max:
                break
            self._waiting.popleft()
            if not tree.cached(row) or tree.on_ssd(row):
                self.done(row)
                continue
            batch.append(row)
            size += record
        return batch

    def put_back(self, batch: Sequence[int]) -> None:
        """The batch could not be written now: it is the next again."""
        self._waiting.extendleft(reversed(batch))

    def done(self, row: int) -> None:
        """A block of a batch is written, or given up."""
        self._queued.discard(row)
        if self._index.accounts is not None:
            self._index.accounts.unclaim_ssd(row)
        self._pending_bytes -= self._record_bytes(row)
        self._index.unpin(row)

    def clear(self) -> int:
        """Gives up everything that waits, not a batch that is out; returns how many waited."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._deferred.clear()
        for row in waiting:
            self.done(row)
        return len(waiting)

    def pins(self) -> dict[int, int]:
        return dict.fromkeys(self._queued, 1)

    def check_integrity(self) -> None:
        assert self._pending_bytes == sum(self._record_bytes(b) for b in self._queued)
        assert self._pending_bytes <= self._pending_bytes_max or len(self._queued) == 1
        assert self._queued >= set(self._waiting)
        assert len(self._waiting) == len(set(self._waiting))
        for row in self._queued:
            assert self._index.tree.pins(row) > 0
            assert self._index.tree.in_host(row)

    def _record_bytes(self, row: int) -> int:
        return self._ssd.record_bytes(self._index.tree.payload_bytes(row))

    def _enqueue_next(self, row: int, before: int, answer: Admission) -> Admission:
        """As `_enqueue`. What continues the block asked about before fares as that one did: a chain
        of which the first may not go is not walked again for each of the others."""
        if answer is Admission.WRITE or self._index.tree.parent(row) != before:
            return self._enqueue(row)
        if answer is Admission.OVER_BUDGET:
            self._turn_away([row])
        return answer

    def _enqueue(self, row: int, last: int | None = None, *, insisted: bool = False) -> Admission:
        """Queues a block behind what lies before it; stops at the first that may not go now.

        `last`: the block for which the others are written; else each is judged by itself. Over
        budget all from the first that stays are turned away, or only `last`; `insisted`: none is.
        """
        tree, way = self._index.tree, []
        while row != NOWHERE and not tree.on_ssd(row) and row not in self._queued:
            way.append(row)
            row = tree.parent(row)
        while way:
            answer = self._ask(way[-1], last, insisted=insisted)
            if answer is Admission.OVER_BUDGET:
                self._turn_away(reversed(way) if last is None else [last])
            if answer is not Admission.WRITE:
                return answer
            self._queue(way.pop())
        return Admission.WRITE

    def _ask(self, row: int, last: int | None, *, insisted: bool) -> Admission:
        if not self._index.tree.in_host(row) or not self._index.tree.cached(row):
            return Admission.DECLINE
        if self._index.expiries.over(row):
            return Admission.DECLINE
        if last is None and not self._admission.wanted(row):
            return Admission.DECLINE
        if self._index.accounts is not None and not self._index.accounts.ssd_fits(row):
            return Admission.DECLINE
        record_bytes = self._record_bytes(row)
        answer = admit(
            WriteOffer(
                record_bytes=record_bytes,
                segment_bytes=self._segment_bytes,
                pending_bytes=self._pending_bytes,
                pending_bytes_max=self._pending_bytes_max,
                ssd_available=self._health.available,
            )
        )
        if answer is Admission.WRITE and not self._admission.spend(row, record_bytes):
            if not insisted:
                return Admission.OVER_BUDGET
            self._admission.charge(record_bytes)
        return answer

    def _turn_away(self, rows: Iterable[int]) -> None:
        """The budget keeps them from the SSD, where they were wanted there."""
        for row in rows:
            if self._admission.wanted(row):
                self._admission.turn_away(row, self._record_bytes(row))

    def _queue(self, row: int) -> None:
        self._index.pin(row)
        self._queued.add(row)
        if self._index.accounts is not None:
            self._index.accounts.claim_ssd(row)
        self._waiting.append(row)
        self._pending_bytes += self._record_bytes(row)
