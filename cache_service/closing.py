"""Closing: while a purge runs, nothing that it covers may be committed.

So what is to be purged only gets less, and the purge ends. A commit that is turned away stores
nothing, which is a miss like any other.

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

    @property
    def closed(self) -> bool:
        """True while a purge takes blocks out."""
        return self._covers is not None

    def begin(self, covers: Covers) -> None:
        """REQUIRES: nothing is closed."""
        assert self._covers is None
        self._covers = covers

    def end(self) -> None:
        self._covers = None

    def covers(self, session: Session, rows: Sequence[int], owners: OwnerRuns) -> bool:
        """Whether a commit has to be turned away now."""
        return self._covers is not None and self._covers(session, rows, owners)
