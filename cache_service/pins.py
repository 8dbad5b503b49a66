"""Pins: operators have chains stay cached until a time.

    pin -> names in the index (keeping.py): no victims -> its memo on the SSD -> answered
    tick -> expired ones end; blocks that only host memory has go to the SSD

A pin is by name: blocks of it that are lost (corrupt, or host memory's in a crash) are kept again
once somebody stores them again. Of what it names, all bytes count against the share, cached or not.

Invariants: `keeping.names` counts each hash once for every pin that names it; with an SSD, a pin is
answered when its memo is durable there, and its end too; what pins name is at most a share of the
last tier, and what may not leave host memory at most that share of its extents: recycling and
eviction always find something. Event loop; memos are written on the tier's writer thread.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cache_service.block_tree import ABSENT
from cache_service.chains import Chain
from cache_service.errors import (
    BlockNotCachedError,
    PinQuotaError,
    PinUnknownError,
    PurgeRunningError,
    TooManyPinsError,
)
from cache_service.parts import Parts
from cache_service.pin_views import Pin, PinView
from cache_service.side import Side
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import StorageError
from storage.tier import PAGE_BYTES, rounded

__all__ = ["Pins"]

log = logging.getLogger(__name__)

PINS_MAX = 1024
"""More than anybody keeps in mind; every purge and every listing looks at all."""

INSISTED_PER_TICK = 256


class Pins(Side):
    """The side that keeps. `wall_clock`: Unix seconds."""

    def __init__(self, parts: Parts, wall_clock: Callable[[], float]) -> None:
        self._parts = parts
        self._index = parts.index
        self._tree = parts.index.tree
        self._keeping = parts.index.keeping
        self._wall_clock = wall_clock
        self._ssd = None if parts.cold is None else parts.cold.ssd
        self._pins: dict[str, Pin] = {}
        self._ending: set[str] = set()
        """Pins whose end is not durable on the SSD yet; they keep nothing any more."""
        self._deleting: asyncio.Task[None] | None = None
        share, arena = parts.limits.pin_share_max, parts.arena
        self._keeping.extents_max = int(share * (arena.capacity_bytes // arena.extent_bytes))
        self._named_bytes = 0
        self._named_bytes_max = int(share * self._keepable_bytes())
        self._recover()

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def block_count(self) -> int:
        """Blocks that pins name, each once."""
        return len(self._keeping.names)

    # -- calls -------------------------------------------------------------------------------------

    async def pin(
        self, namespace_id: NamespaceId, block_hash: BlockHash, owner: str, seconds: float
    ) -> PinView:
        """Keeps a block and everything before it, for `seconds` from now. Again, for the same
        owner: the same pin, with a new end.

        Raises BlockNotCachedError, PinQuotaError, TooManyPinsError, PurgeRunningError, TierIOError.
        """
        if self._parts.closing.closed:
            raise PurgeRunningError("a purge of this cache is running: wait for its end")
        row = self._tree.find(block_hash)
        if row == ABSENT or self._tree.namespace_id(row) != namespace_id:
            raise BlockNotCachedError("the block is not cached in that namespace; warm it first")
        rows = np.array([*reversed([row, *self._tree.ancestors(row)])], np.int64)
        chain = Chain(self._tree.directory.words(rows).tobytes())
        now = self._wall_clock()
        known = self._same(namespace_id, block_hash, owner)
        if known is None:
            self._check_room(chain, rows, self._tree.payload_bytes(row))
        pin = Pin(
            known.pin_id if known is not None else secrets.token_hex(16),
            namespace_id,
            chain,
            self._tree.payload_bytes(row),
            owner,
            known.created if known is not None else now,
            now + seconds,
        )
        # Kept before its memo is: nothing may leave meanwhile. Taken back where that fails.
        self._enter(pin)
        if self._ssd is not None:
            try:
                await self._ssd.save_memos([(pin.memo_name, pin.memo())])
            except BaseException:
                if self._pins.get(pin.pin_id) is pin:
                    self._leave(pin)
                    if known is not None:
                        self._enter(known)
                raise
        self._insist()
        if known is None:
            self._parts.tally.pins_changed("made", 1)
        return self._view(pin)

    async def unpin(self, pin_id: str) -> None:
        """Lets a pin's blocks leave like others. Raises PinUnknownError, TierIOError: it is ended,
        and a restart now would bring it back."""
        pin = self._pins.get(pin_id)
        if pin is None and pin_id not in self._ending:
            raise PinUnknownError("there is no such pin; it may have ended", pin_id=pin_id)
        await self.end([] if pin is None else [pin], "removed")

    async def views(self) -> AsyncGenerator[PinView, None]:
        """The next to end first. Others run between two."""
        for pin in sorted(self._pins.values(), key=lambda pin: pin.expires):
            yield self._view(pin)
            await asyncio.sleep(0)

    @property
    def seconds_max(self) -> float:
        """How long a pin may last."""
        return self._parts.limits.pin_seconds_max

    # -- for purges --------------------------------------------------------------------------------

    def that(self, names: Callable[[Pin], bool]) -> list[Pin]:
        return [pin for pin in self._pins.values() if names(pin)]

    async def end(self, pins: Iterable[Pin], how: str) -> None:
        """Ends pins, durably on return. Raises TierIOError."""
        count = 0
        for pin in list(pins):
            if self._pins.get(pin.pin_id) is pin:
                self._leave(pin)
                self._ending.add(pin.pin_id)
                count += 1
        self._parts.room.changed()
        if count:
            self._parts.tally.pins_changed(how, count)
        await self._delete_memos()

    # -- as a side ---------------------------------------------------------------------------------

    def tick(self) -> None:
        now = self._wall_clock()
        over = [pin for pin in self._pins.values() if pin.expires <= now]
        for pin in over:
            self._leave(pin)
            self._ending.add(pin.pin_id)
        if over:
            self._parts.tally.pins_changed("expired", len(over))
            self._parts.room.changed()
        idle = self._deleting is None or self._deleting.done()
        if self._ending and idle and self._parts.health.available:
            self._deleting = asyncio.get_running_loop().create_task(self._delete_quietly())
        self._insist()

    async def drain(self) -> None:
        """What only host memory has goes to the SSD, a queue full at a time, while that helps."""
        if self._deleting is not None:
            await asyncio.wait({self._deleting})
        writer, left = self._parts.writer, len(self._keeping.withheld_rows) + 1
        while writer is not None and 0 < len(rows := self._keeping.withheld_rows) < left:
            left = len(rows)
            writer.insist(rows)
            await writer.drain()

    def check_integrity(self) -> None:
        names = Counter(block_hash for pin in self._pins.values() for block_hash in pin.chain)
        assert names == self._keeping.names
        sizes = {h: self._size(pin.block_bytes) for pin in self._pins.values() for h in pin.chain}
        assert self._named_bytes == sum(sizes.values())
        assert not self._ending & self._pins.keys()
        assert len(self._pins) <= PINS_MAX

    # -- below -------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Pins that are there; ended ones and what is none are to be deleted."""
        if self._ssd is None:
            return
        now = self._wall_clock()
        for name, memo in self._ssd.memos.items():
            try:
                pin = Pin.of_memo(name, memo)
            except ValueError:
                log.warning("a memo on the SSD is no pin", extra={"memo": name.hex()})
                continue
            if pin.expires <= now or len(self._pins) >= PINS_MAX:
                self._ending.add(pin.pin_id)
            else:
                self._enter(pin)

    def _same(self, namespace_id: NamespaceId, block_hash: BlockHash, owner: str) -> Pin | None:
        for pin in self._pins.values():
            whose = (pin.owner, pin.namespace_id)
            if whose == (owner, namespace_id) and pin.chain[-1] == block_hash:
                return pin
        return None

    def _check_room(self, chain: Chain, rows: "NDArray[np.int64]", block_bytes: int) -> None:
        """Raises PinQuotaError, TooManyPinsError."""
        if len(self._pins) >= PINS_MAX:
            raise TooManyPinsError(f"{PINS_MAX} pins are kept; unpin some first", pins_max=PINS_MAX)
        share = self._parts.limits.pin_share_max
        if self._ssd is not None and not self._ssd.free_segment_count:
            raise PinQuotaError("the SSD has no free segment now, to write in: try again")
        new = sum(block_hash not in self._keeping.names for block_hash in chain)
        wanted = self._named_bytes + new * self._size(block_bytes)
        if wanted > self._named_bytes_max:
            raise PinQuotaError(
                f"pins would name {wanted} bytes, and may name {self._named_bytes_max}: unpin"
                " some, or raise pins.share_max",
                named_bytes=wanted,
                named_bytes_max=self._named_bytes_max,
            )
        if self._keeping.extents_with(rows) > self._keeping.extents_max:
            raise PinQuotaError(
                f"blocks that only host memory has would hold more than {share:.0%} of it: wait"
                " until the SSD has them, or unpin some"
                if self._ssd is not None
                else f"pins would hold more than {share:.0%} of host memory's extents: unpin some",
                extents_max=self._keeping.extents_max,
            )

    def _enter(self, pin: Pin) -> None:
        """Also in place of one with the same id."""
        before = self._pins.get(pin.pin_id)
        self._pins[pin.pin_id] = pin
        self._ending.discard(pin.pin_id)
        if before is not None:
            return  # of the same chain
        names = self._keeping.names
        new = [block_hash for block_hash in pin.chain if block_hash not in names]
        names.update(pin.chain)
        self._named_bytes += len(new) * self._size(pin.block_bytes)
        self._index.keep(self._rows(new))

    def _leave(self, pin: Pin) -> None:
        del self._pins[pin.pin_id]
        names, gone = self._keeping.names, []
        for block_hash in pin.chain:
            names[block_hash] -= 1
            if not names[block_hash]:
                del names[block_hash]
                gone.append(block_hash)
        self._named_bytes -= len(gone) * self._size(pin.block_bytes)
        self._index.let_leave(self._rows(gone))

    def _keepable_bytes(self) -> int:
        """Of the last tier; of an SSD without the segment that is written and the one that is kept
        free for what recycling writes again."""
        if self._ssd is None:
            return self._parts.arena.capacity_bytes
        sizes = sorted(segment.capacity_bytes for segment in self._ssd.segments())
        return sum(size - PAGE_BYTES for size in sizes[2:])

    def _size(self, block_bytes: int) -> int:
        """What a block takes in the last tier."""
        return rounded(block_bytes) if self._ssd is None else self._ssd.record_bytes(block_bytes)

    def _rows(self, hashes: list[BlockHash]) -> "NDArray[np.int64]":
        found = self._tree.find_chain(Chain.of(hashes))
        rows: NDArray[np.int64] = found[found != ABSENT]
        return rows

    def _insist(self) -> None:
        """What only host memory has, and pins name, goes to the SSD."""
        writer = self._parts.writer
        rows = self._keeping.withheld_rows
        if writer is None or not rows or not self._parts.health.available:
            return
        waiting = [row for row in rows if not self._tree.pins(row)]
        if waiting:
            writer.insist(waiting[:INSISTED_PER_TICK])

    async def _delete_memos(self) -> None:
        ending = list(self._ending)
        if self._ssd is not None and ending:
            await self._ssd.save_memos([(bytes.fromhex(pin_id), None) for pin_id in ending])
        self._ending.difference_update(ending)

    async def _delete_quietly(self) -> None:
        try:
            await self._delete_memos()
        except StorageError as error:
            log.warning("ended pins are still on the SSD", extra={"problem": str(error)})

    def _view(self, pin: Pin) -> PinView:
        found = self._tree.find_chain(pin.chain)
        rows = found[found != ABSENT]
        on_ssd = int((self._tree.columns.array("segment")[rows] >= 0).sum())
        return PinView(pin, len(rows), on_ssd, self._ssd is not None)
