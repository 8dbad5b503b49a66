"""What a client says of the blocks it stores or reads, beside their names. Frozen."""

from dataclasses import dataclass

__all__ = ["NO_HINTS", "Hints"]


@dataclass(frozen=True, slots=True)
class Hints:
    """Of one reserve or acquire."""

    one_off: bool = False
    """New blocks are the first to leave; a use leaves no trace."""


NO_HINTS = Hints()
