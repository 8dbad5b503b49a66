"""Refusals that wait for their line, counted by whose they are. Pure; one owner, the log."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["REFUSED_MAX", "RefusalTable", "Refused"]

REFUSED_MAX = 32
"""Told apart at a time; what does not fit is counted as others. Bounds a flush's lines."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Who was refused what, and why."""

    principal: str
    roles: tuple[str, ...]
    method: str
    reason: str


OTHERS = Refused("others", (), "", "")


class RefusalTable:
    """Invariant: every refusal that was added is in one count, until it is taken."""

    def __init__(self) -> None:
        self._counts: Counter[Refused] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def total(self) -> int:
        """Refusals that wait."""
        return self._counts.total()

    def add(self, refused: Refused, count: int = 1) -> None:
        """`count` more of them."""
        known = refused in self._counts or len(self._counts) < REFUSED_MAX
        self._counts[refused if known else OTHERS] += count

    def take(self) -> list[tuple[Refused, int]]:
        """All of them, the first refused first; none waits afterwards."""
        taken, self._counts = list(self._counts.items()), Counter()
        return taken

    def put_back(self, taken: Iterable[tuple[Refused, int]]) -> None:
        """What was taken and found no line."""
        for refused, count in taken:
            self.add(refused, count)
