"""OwnerRuns: whose the blocks of a chain are, one run of blocks after the other.

    | public    | acme           | acme/search                |
    0           4                10                           as long as the chain

A chain goes down a ladder of scopes and never up (docs/isolation.md), so each owner lies within the
one before it. Frozen data, any thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["NOBODYS", "OwnerRuns", "within"]


def within(path: str, owner: str) -> bool:
    """Whether `path` is `owner` or a narrower one inside it. Everything is within ""."""
    return not owner or path == owner or path.startswith(f"{owner}/")


@dataclass(frozen=True, slots=True)
class OwnerRuns:
    """Equally many owners and ends; what is behind the last end is nobody's."""

    paths: tuple[str, ...] = ()
    """Scope paths; "": nobody's."""
    ends: tuple[int, ...] = ()
    """Ascending; each the block at which a run has ended."""

    def at(self, position: int) -> str:
        """Whose block `position` of the chain is."""
        for path, end in zip(self.paths, self.ends, strict=True):
            if position < end:
                return path
        return ""

    def end(self, position: int) -> int | None:
        """Where the run of block `position` ends; None: it goes on."""
        return next((end for end in self.ends if position < end), None)

    def runs(self, first: int, end: int) -> Iterator[tuple[str, int, int]]:
        """(owner, first, end) of what blocks `first` to `end` consist of, in order."""
        for path, run_end in zip(self.paths, self.ends, strict=True):
            if first < min(run_end, end):
                yield path, first, min(run_end, end)
                first = min(run_end, end)
        if first < end:
            yield "", first, end


NOBODYS = OwnerRuns()
