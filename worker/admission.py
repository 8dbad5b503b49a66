"""Which waiting request gets pages next. Pure: state in, decision out.

Order: priority; the tenant's turn (`worker/fair_share.py`); then, within a tenant, who waited past
the age limit, in order of arrival; the longest resident prefix; the earliest deadline; arrival. A
request whose next block a running one computes stands back, since it will find it resident: only
who waits stands back, and only for who runs, so no two wait for each other. One that is past the
age limit and does not fit is passed by nobody after it.

Nobody starves: after `PASSES_MAX` admissions the next is that of whoever waited longest, if past
the age limit, whatever its priority or tenant.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CANDIDATES_MAX",
    "PASSES_MAX",
    "AdmissionOrder",
    "Candidate",
    "admission_order",
    "pages_needed",
    "pages_soon",
]

CANDIDATES_MAX = 64
"""So many waiting requests are looked at per admission: a bound on its cost."""

PASSES_MAX = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting request as the policy sees it; `position` is its place in order of arrival."""

    position: int
    waited_seconds: float
    resident_blocks: int
    stands_back: bool
    priority: int = 0
    turn: float = 0.0
    """Of its tenant."""
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class AdmissionOrder:
    positions: tuple[int, ...]
    strict: frozenset[int]
    """Must not be passed by those after them."""
    oldest: int | None
    """Of those that may go, who waited longest, if past the age limit."""


def admission_order(
    candidates: Sequence[Candidate], age_limit_seconds: float, *, oldest_first: bool = False
) -> AdmissionOrder:
    """The order in which to try `candidates`. `oldest_first`: it was passed often enough."""
    overdue = frozenset(
        c.position for c in candidates if c.waited_seconds > age_limit_seconds and not c.stands_back
    )
    oldest = min(overdue, default=None)

    def place(c: Candidate) -> tuple[float, ...]:
        late = c.position in overdue
        return (
            not (oldest_first and c.position == oldest),
            -c.priority,
            c.turn,
            not late,
            c.position if late else -c.resident_blocks,
            c.deadline,
            c.position,
        )

    ready = sorted((c for c in candidates if not c.stands_back), key=place)
    return AdmissionOrder(tuple(c.position for c in ready), overdue, oldest)


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


def pages_soon(prompt_tokens: int, known_tokens: Sequence[int], block_tokens: int) -> int:
    """Pages for the known tokens of a request's sequences, and one more for each."""
    shared = prompt_tokens // block_tokens
    return shared + sum(1 - (-known // block_tokens) - shared for known in known_tokens)
