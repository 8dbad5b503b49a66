"""LoadRoom: slabs for blocks that are on their way from the shared tier, on their owners' accounts.

    whose they are -> claimed, run by run -> slabs -> filled by a thread -> copies, or given back

Invariant: what was taken and claimed is in one `Taken` until it is popped or given back by `close`;
a block on an account above its soft quota takes nothing that is within another's. Event loop only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from cache_service.accounts import Account
from cache_service.parts import Parts
from kvtier.blocks import MissReason
from storage.tier import Slab

__all__ = ["LoadRoom", "Taken"]


class LoadRoom:
    """What all loads have taken."""

    def __init__(self, parts: Parts) -> None:
        self._room = parts.room
        self._index = parts.index
        writer = parts.writer
        self._busy = _never if writer is None else writer.busy
        self.slab_count = 0
        """Taken, and not in the index yet."""

    async def take(self, size: int, owners: Sequence[str], patient: bool) -> "Taken":
        """A slab for each block of these owners, or for as many of the first as there is room for.
        `patient`: waits for the first one, for a bounded time."""
        taken = Taken(self, size)
        try:
            for owner, run in groupby(owners):
                account = self._of_path(owner)
                left = len(list(run))
                while left and taken.reason is MissReason.NONE:
                    left -= await self._more(taken, account, left, patient and not len(taken))
                if left:
                    break
        except BaseException:
            taken.close()
            raise
        return taken

    def _of_path(self, owner: str) -> Account | None:
        return None if self._index.accounts is None else self._index.accounts.of_path(owner)

    async def _more(
        self, taken: "Taken", account: Account | None, count: int, patient: bool
    ) -> int:
        """Up to so many more on one account; 0, and the reason is noted."""
        patience = self._room.patience() if patient else 0.0
        if account is not None:
            count = await self._claimed(taken.size, account, count, patience)
            if not count:
                taken.reason = MissReason.QUOTA
                return 0
        slabs: list[Slab] = []
        try:
            slabs = self._room.take_up_to(taken.size, count, account)
            if not slabs and patient:
                if account is not None and count > 1:
                    # While it waits no more counts as borrowed than it waits for.
                    self.unclaim(account, (count - 1) * taken.size)
                    count = 1
                slab = await self._room.take_waiting(taken.size, self._busy, patience, account)
                slabs = [] if slab is None else [slab]
        finally:
            if account is not None:
                self.unclaim(account, (count - len(slabs)) * taken.size)
        taken.add(slabs, account)
        if not slabs:
            taken.reason = MissReason.ARENA_FULL
        return len(slabs)

    async def _claimed(self, size: int, account: Account, count: int, patience: float) -> int:
        if patience:
            return await self._room.claim_waiting(account, size, count, self._busy, patience)
        claimed = self._room.claim(account, size, count)
        if not claimed:
            self.unclaim(account, 0)
        return claimed

    def claim(self, account: Account, size: int) -> bool:
        """Room for one block more."""
        return bool(self._room.claim(account, size, 1))

    def unclaim(self, account: Account, size: int) -> None:
        assert self._index.accounts is not None
        self._index.accounts.unclaim_host(account, size)

    def give_back(self, slab: Slab) -> None:
        self.slab_count -= 1
        self._room.give_back(slab)


class Taken:
    """Slabs in the order of their blocks, each with the account that it is claimed on."""

    def __init__(self, room: LoadRoom, size: int) -> None:
        self._room = room
        self.size = size
        self._slabs: deque[tuple[Slab, Account | None]] = deque()
        self.reason = MissReason.NONE
        """Why there are no more."""

    def __len__(self) -> int:
        return len(self._slabs)

    @property
    def slabs(self) -> list[Slab]:
        return [slab for slab, _ in self._slabs]

    def add(self, slabs: Sequence[Slab], account: Account | None) -> None:
        self._room.slab_count += len(slabs)
        self._slabs.extend((slab, account) for slab in slabs)

    @contextmanager
    def room_on(self, account: Account | None) -> Iterator[bool]:
        """Whether there is room on the next block's account while its copy comes, which turns out
        to be this one."""
        planned = self._slabs[0][1]
        if account is None or account is planned:
            yield True
            return
        claimed = self._room.claim(account, self.size)
        try:
            yield claimed
        finally:
            self._room.unclaim(account, claimed * self.size)

    @contextmanager
    def pop(self) -> Iterator[Slab]:
        """The next slab, from now on the caller's; its claim ends when the copy is there."""
        slab, account = self._slabs.popleft()
        self._room.slab_count -= 1
        try:
            yield slab
        finally:
            if account is not None:
                self._room.unclaim(account, self.size)

    def drop(self) -> None:
        """Gives the next one back."""
        slab, account = self._slabs.popleft()
        self._room.give_back(slab)
        if account is not None:
            self._room.unclaim(account, self.size)

    def close(self) -> None:
        """Gives back what is left. Idempotent."""
        while self._slabs:
            self.drop()


def _never() -> bool:
    return False
