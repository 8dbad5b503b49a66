"""What the next step computes. Pure: state in, plan out.

Every decoding sample gets its one token first; what is left of the step's tokens goes to prompts,
in order of admission. A prompt's piece ends at its end or at a multiple of the block size, and
never crosses a multiple of the step size: so a warm request's later pieces are those of the cold
one, and their KV is computed in the same shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PromptProgress", "next_piece_end", "plan_prompts"]


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """A prompt in prefill. Counts of tokens."""

    computed: int
    total: int


def plan_prompts(
    prompts: Sequence[PromptProgress], decode_count: int, step_tokens: int, block_tokens: int
) -> list[int]:
    """For each prompt the position its piece ends at; equal to `computed` when it has to wait.

    At least one prompt advances, however many samples decode.
    """
    room = max(step_tokens - decode_count, block_tokens)
    ends = []
    for prompt in prompts:
        end = next_piece_end(prompt, room, step_tokens, block_tokens)
        room -= end - prompt.computed
        ends.append(end)
    return ends


def next_piece_end(prompt: PromptProgress, room: int, step_tokens: int, block_tokens: int) -> int:
    """Where the next piece of `prompt` ends when it may have `room` tokens."""
    grid = max(step_tokens // block_tokens, 1) * block_tokens
    end = min(prompt.total, (prompt.computed // grid + 1) * grid)
    if end - prompt.computed <= room:
        return end
    return max((prompt.computed + room) // block_tokens * block_tokens, prompt.computed)
