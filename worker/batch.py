"""What the next step computes. Pure: pending tokens in, pieces out.

Every decode gets its one token first; what is left of the step's tokens goes to the others in their
order. A piece ends with what is known or at a multiple of the block size, and never crosses a
multiple of the step size: so a warm request's later pieces are those of the cold one, and their KV
is computed in the same shapes. The one that must get on has a block before all others.

Where nobody decodes, no answer stops while a step runs, so the step may be larger: a piece costs
the reading of all weights, its past gathered once more, and the model's calls, whatever its size.

On a grid (`worker/grid.py`) a piece is whole or waits; each piece, and each decode, is a forward of
its own, so what there is beside it is nothing to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.grid import Grid

__all__ = ["Pending", "next_piece_end", "plan_pieces", "plan_whole_pieces", "step_size"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A sequence that may compute. Counts of tokens; `computed` < `known`."""

    computed: int
    known: int
    must_advance: bool = False
    """It gets a block's room whoever is before it."""

    @property
    def decodes(self) -> bool:
        return self.known - self.computed == 1


def step_size(pendings: Sequence[Pending], step_tokens: int, prompt_step_tokens: int) -> int:
    """How many tokens the step of `pendings` has: the second number where nobody decodes, unless
    it is the smaller one."""
    if any(pending.decodes for pending in pendings):
        return step_tokens
    return max(step_tokens, prompt_step_tokens)


def plan_pieces(pendings: Sequence[Pending], step_tokens: int, block_tokens: int) -> list[int]:
    """For each the position its piece ends at; equal to `computed` when it has to wait.

    One that is no decode advances, however many decode.
    """
    decode_count = sum(pending.decodes for pending in pendings)
    room = max(step_tokens - decode_count, block_tokens)
    kept = block_tokens if any(p.must_advance and not p.decodes for p in pendings) else 0
    ends = []
    for pending in pendings:
        if pending.decodes:
            ends.append(pending.known)
            continue
        kept = 0 if pending.must_advance else kept
        end = next_piece_end(pending, room - kept, step_tokens, block_tokens)
        room -= end - pending.computed
        ends.append(end)
    return ends


def next_piece_end(pending: Pending, room: int, step_tokens: int, block_tokens: int) -> int:
    """Where the next piece of `pending` ends when it may have `room` tokens."""
    grid = max(step_tokens // block_tokens, 1) * block_tokens
    end = min(pending.known, (pending.computed // grid + 1) * grid)
    if end - pending.computed <= room:
        return end
    return max((pending.computed + room) // block_tokens * block_tokens, pending.computed)


def plan_whole_pieces(pendings: Sequence[Pending], step_tokens: int, grid: Grid) -> list[int]:
    """The same on a grid: every decode, one piece at least, and more while they fit in the step."""
    ends = [pending.known if pending.decodes else pending.computed for pending in pendings]
    room = step_tokens - sum(pending.decodes for pending in pendings)
    pieces = [place for place, pending in enumerate(pendings) if not pending.decodes]
    pieces.sort(key=lambda place: not pendings[place].must_advance)
    for turn, place in enumerate(pieces):
        pending = pendings[place]
        end = grid.piece_end(pending.computed, pending.known)
        size = end - pending.computed
        if turn and size > room:
            break
        room -= size
        ends[place] = end
    return ends
