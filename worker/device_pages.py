"""Pages on a device: copies run beside the transfer's threads, which look after them.

    a registered slab    hash it, begin its copy ... the copy is over, hash it again
    any other slab       copy it to staging, hash that, begin its copy ... the copy is over

The page itself cannot be hashed here, so what is hashed is what the copy read: memory of ours
alone, or a slab before and after. What follows, and why it will do: docs/adr/0030.

Invariant: after `revoke` no copy begins. A page is quiet when none is under way, which the engine
asks for without waiting. At most `IN_FLIGHT_BYTES` of a load are under way, and as many staged, but
for one page more on each thread.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvtier.keys import BlockHash
from worker.device_copies import CopyEvent, DeviceCopies
from worker.landing import LandingProgress, PageBytes, RevokedError, Spread
from worker.transfer import copy_hashed, page_checksum

__all__ = ["DeviceLanding", "DeviceSource"]

IN_FLIGHT_BYTES = 64 * 1024 * 1024
"""A millisecond or two of a fast link: more would not make it faster."""


class _DeviceUse:
    """What loads and stores have in common: copies under way, and whether more may begin."""

    def __init__(self, copies: DeviceCopies, pages: Sequence[int]) -> None:
        """On the engine's thread: nothing that it asked for later is waited for."""
        self.page_bytes = copies.page_bytes
        self._copies = copies
        self._pages = tuple(pages)
        self._fence = copies.fence()
        self._lock = threading.Lock()
        self._under_way: dict[int, tuple[CopyEvent, PageBytes]] = {}
        """By number, in the order in which they began. The host memory is kept with each: whatever
        goes wrong, nobody else gets it while it is copied to or from."""
        self._begun = 0
        self._revoked = False
        self._spare: list[PageBytes] = []
        self._at_once = max(1, IN_FLIGHT_BYTES // copies.page_bytes)

    def __len__(self) -> int:
        return len(self._pages)

    def close(self) -> None:
        for event, _ in list(self._under_way.values()):
            event.wait()

    def revoke(self) -> bool:
        with self._lock:
            self._revoked = True
        return True

    @property
    def quiet(self) -> bool:
        with self._lock:
            return self._revoked and all(event.done() for event, _ in self._under_way.values())

    def _begin_load(self, host: PageBytes, index: int) -> int:
        with self._lock:
            self._check()
            event = self._copies.load(host, self._pages[index], self._fence)
            return self._note(event, host)

    def _begin_store(self, index: int, host: PageBytes) -> int:
        with self._lock:
            self._check()
            event = self._copies.store(self._pages[index], host, self._fence)
            return self._note(event, host)

    def _check(self) -> None:
        if self._revoked:
            raise RevokedError("the engine took its pages back")

    def _note(self, event: CopyEvent, host: PageBytes) -> int:
        self._begun += 1
        self._under_way[self._begun] = event, host
        return self._begun

    def _wait(self, copy: int) -> None:
        # It stays in the list until it is over, for whoever asks whether all is quiet.
        self._under_way[copy][0].wait()
        with self._lock:
            del self._under_way[copy]

    def _staged(self, count: int) -> list[PageBytes]:
        with self._lock:
            self._check()
            cut = max(0, len(self._spare) - count)
            found, self._spare = self._spare[cut:], self._spare[:cut]
        return [*found, *self._copies.staging(count - len(found))]

    def _give_back(self, staged: Sequence[PageBytes]) -> None:
        with self._lock:
            self._spare += staged


@dataclass(slots=True)
class _Move:
    copy: int
    staged: PageBytes | None
    """Free again when it is over."""
    again: tuple[BlockHash, PageBytes, int] | None
    """To be hashed again when it is over, and the checksum."""


class DeviceLanding(_DeviceUse, LandingProgress):
    """A `Landing` on a device."""

    def __init__(self, copies: DeviceCopies, pages: Sequence[int]) -> None:
        _DeviceUse.__init__(self, copies, pages)
        LandingProgress.__init__(self, len(pages))
        self._moves: dict[int, _Move] = {}
        """By index, in the order in which they began; without those that a thread looks after."""
        self._right: set[int] = set()
        self._room: list[PageBytes] = []

    def take(
        self,
        first: int,
        blocks: Sequence[BlockHash],
        slabs: Sequence[PageBytes],
        checksums: Sequence[int],
    ) -> int:
        each = zip(blocks, slabs, checksums, strict=True)
        for done, of in enumerate(each):
            if not self._take(first + done, *of):
                return done
        return len(blocks)

    def _take(self, index: int, block: BlockHash, slab: PageBytes, checksum: int) -> bool:
        if self._copies.reads(slab):
            if page_checksum(block, slab) != checksum:
                return False
            self._move(index, slab, None, (block, slab, checksum))
        else:
            (staged,) = self._staged(1)
            if copy_hashed([block], [slab], [staged], [staged]) != [checksum]:
                self._give_back([staged])
                return False
            self._move(index, staged, staged, None)
        while (oldest := self._overdue()) is not None:
            self._end(*oldest)
        return True

    def room(self, first: int, count: int) -> Sequence[PageBytes]:
        self._room = self._staged(min(count, self._at_once))
        return self._room

    def push(self, first: int, filled: Sequence[PageBytes]) -> None:
        self._give_back(self._room[len(filled) :])
        self._room = []
        for index, staged in enumerate(filled, first):
            self._move(index, staged, staged, None)

    def settle(self, first: int, count: int, spread: Spread) -> int:
        return spread(count, lambda place: self._settled(first + place))

    def _settled(self, index: int) -> bool:
        with self._lock:
            move = self._moves.pop(index, None)
        if move is not None:
            self._end(index, move)
        return index in self._right

    def _move(
        self,
        index: int,
        host: PageBytes,
        staged: PageBytes | None,
        again: tuple[BlockHash, PageBytes, int] | None,
    ) -> None:
        move = _Move(self._begin_load(host, index), staged, again)
        with self._lock:
            self._moves[index] = move

    def _overdue(self) -> tuple[int, _Move] | None:
        """The oldest, where too many are under way."""
        with self._lock:
            if len(self._moves) <= self._at_once:
                return None
            index = next(iter(self._moves))
            return index, self._moves.pop(index)

    def _end(self, index: int, move: _Move) -> None:
        self._wait(move.copy)
        if move.staged is not None:
            self._give_back([move.staged])
        if move.again is not None:
            block, slab, checksum = move.again
            if page_checksum(block, slab) != checksum:
                return
        self._right.add(index)


class DeviceSource(_DeviceUse):
    """A `Source` on a device."""

    @contextlib.contextmanager
    def lend(self, indexes: Sequence[int]) -> Iterator[Sequence[PageBytes]]:
        staged = self._staged(len(indexes))
        copies = [self._begin_store(*pair) for pair in zip(indexes, staged, strict=True)]
        for copy in copies:
            self._wait(copy)
        try:
            yield staged
        finally:
            self._give_back(staged)
