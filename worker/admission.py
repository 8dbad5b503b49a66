"""Which waiting request gets pages next. Pure: state in, decision out.

Rule: a request is admitted only when every page it can ever need is there: its prompt's pages now,
and the pages of all tokens it may generate as a reservation. So a running request never waits for
a page, nothing is ever preempted or computed twice, and no two requests can wait for each other.
The price: pages are set aside for completions that may end early.

Order: longest resident prefix first, in order of arrival among equals; a request that waits for
another one's prefill of the same next block stands back, since it will find that block resident.
A request older than the age limit goes before all others, in order of arrival, stands back for
nobody, and when it does not fit nobody passes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CANDIDATES_MAX", "AdmissionOrder", "Candidate", "admission_order", "pages_needed"]

CANDIDATES_MAX = 64
"""So many of the oldest waiting requests are looked at per admission: a bound on its cost."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting request as the policy sees it; `position` is its place in order of arrival."""

    position: int
    waited_seconds: float
    resident_blocks: int
    stands_back: bool


@dataclass(frozen=True, slots=True)
class AdmissionOrder:
    positions: tuple[int, ...]
    strict_count: int
    """So many at the front must not be passed by later ones."""


def admission_order(candidates: Sequence[Candidate], age_limit_seconds: float) -> AdmissionOrder:
    """The order in which to try `candidates`."""
    overdue = [c for c in candidates if c.waited_seconds > age_limit_seconds]
    young = [c for c in candidates if c.waited_seconds <= age_limit_seconds and not c.stands_back]
    overdue.sort(key=lambda c: c.position)
    young.sort(key=lambda c: (-c.resident_blocks, c.position))
    return AdmissionOrder(tuple(c.position for c in [*overdue, *young]), len(overdue))


def pages_needed(
    prompt_tokens: int, completion_tokens: int, sample_count: int, block_tokens: int
) -> int:
    """Pages that a request can ever hold at once.

    The prompt's full pages are shared by all samples. The last token of a completion is never fed
    back, so its KV takes no place.
    """
    shared = prompt_tokens // block_tokens
    longest = -(-(prompt_tokens + completion_tokens - 1) // block_tokens)
    return shared + sample_count * (longest - shared)
