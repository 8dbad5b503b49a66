"""Closing: while a purge runs, nothing that it covers may be committed, and nothing loaded.

So what is to be purged only gets less, and the purge ends. A commit that is turned away stores
nothing, which is a miss like any other.

    begin ---- blocks are taken out ---- end ---- the shared tier deletes ---- over
    |------- covered commits: none -------|
    |---------------- nothing that was asked for elsewhere enters ----------------|

What was asked for before `over` does not enter after it either: it may be a copy from before.

Invariant: at most one purge closes something. Written by the purge, asked by the storing side;
event loop only.
"""

from collections.abc import Callable, Sequence

from cache_service.owner_runs import OwnerRuns
from cache_service.session import Session

__all__ = ["Closing", "Covers"]

Covers = Callable[[Session, Sequence[int], OwnerRuns], bool]
"""Whether a commit of this session, of a chain of these rows (ABSENT among them) and owners, is
covered."""


class Closing:
    """What is being purged now, if anything."""

    def __init__(self) -> None:
        self._covers: Covers | None = None
        self._running = False
        self._count = 0

    @property
    def closed(self) -> bool:
        """True while a purge takes blocks out."""
        return self._covers is not None

    @property
    def epoch(self) -> int | None:
        """Of what is asked for elsewhere now: it may enter while this is the same. None: a purge
        is running, and nothing may."""
        return None if self._running else self._count

    def begin(self, covers: Covers) -> None:
        """REQUIRES: nothing is closed."""
        assert not self._running
        self._covers = covers
        self._running = True

    def end(self) -> None:
        """All is taken out: commits go on."""
        self._covers = None

    def over(self) -> None:
        """All is deleted that will be. Idempotent."""
        self._covers = None
        if self._running:
            self._running = False
            self._count += 1

    def covers(self, session: Session, rows: Sequence[int], owners: OwnerRuns) -> bool:
        """Whether a commit has to be turned away now."""
        return self._covers is not None and self._covers(session, rows, owners)
