"""Whom to put back when a running request needs a page. Pure: state in, decision out.

The lowest priority first; then who keeps blocks, since the others would lose all that they
computed; then the tenant that is most over its share; then the last admitted. Never one that must
get on: then somebody always does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PREEMPTIONS_MAX", "Victim", "choose_victim"]

PREEMPTIONS_MAX = 3
"""A request that was put back so often is admitted with all its pages reserved, and stays."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A running request as the policy sees it."""

    position: int
    """For the caller."""
    priority: int
    keeps: bool
    """Its whole blocks stay in pages and cache."""
    turn: float
    """Of its tenant, in the fair share's time."""
    admitted: int
    """Number of its admission."""
    must_advance: bool
    """It has its pages reserved, or is the first admitted."""


def choose_victim(running: Sequence[Victim]) -> int | None:
    """`position` of the one to put back; None when all must get on."""
    worst = min(
        (victim for victim in running if not victim.must_advance),
        key=lambda v: (v.priority, not v.keeps, -v.turn, -v.admitted),
        default=None,
    )
    return None if worst is None else worst.position
