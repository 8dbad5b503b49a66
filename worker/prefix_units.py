"""What a hit may end at: every block, or the ends of prefix units only. Pure.

    A B            the end of the input A B is persisted as a unit's end
    A C            shares A, which ends no unit: a miss. What both share is one from now on
    A D            hits A

Units are what DeepSeek's API publishes: a request hits a unit when it matches all of it. Ends are
those of a request's input and of its output, of what two requests turned out to share, and every so
many tokens of a long one. Blocks are what is stored; each end is that of the last whole block.
"""

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["EVERY_BLOCK", "PARTS", "PrefixUnits", "UnitPart"]

UnitPart = Literal["end_of_input", "end_of_output", "common_prefix", "interval"]
PARTS: tuple[UnitPart, ...] = get_args(UnitPart)


@dataclass(frozen=True, slots=True)
class PrefixUnits:
    """`whole`: hits end at units' ends; else at any block, and the rest means nothing."""

    whole: bool = False
    parts: frozenset[UnitPart] = frozenset(PARTS)
    interval_tokens: int = 4096

    @property
    def marks_forks(self) -> bool:
        """Where two chains part, what is before it is a unit."""
        return self.whole and "common_prefix" in self.parts

    def ends(
        self, prompt_tokens: int, block_count: int, block_tokens: int, *, output_ended: bool
    ) -> tuple[int, ...]:
        """Of a chain of `block_count` whole blocks: after how many of them units end, ascending."""
        if not self.whole:
            return ()
        ends: set[int] = set()
        if "interval" in self.parts:
            step = max(1, self.interval_tokens // block_tokens)
            ends.update(range(step, block_count + 1, step))
        if "end_of_input" in self.parts:
            # One token is always left to compute: that far the very same prompt can hit.
            ends.add((prompt_tokens - 1) // block_tokens)
        if "end_of_output" in self.parts and output_ended:
            ends.add(block_count)
        return tuple(sorted(end for end in ends if 0 < end <= block_count))


EVERY_BLOCK = PrefixUnits()
