"""Which worker takes a request. Pure: what is known of the workers in, one of them out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker, as a request sees it."""

    worker: str
    """Its address."""
    running_count: int
    """Requests of this gateway that it has."""


def choose(candidates: Sequence[Candidate], tried: Collection[str] = ()) -> str | None:
    """The one with the fewest requests that was not tried yet; None: there is none left."""
    left = [each for each in candidates if each.worker not in tried]
    return min(left, key=lambda each: each.running_count).worker if left else None
