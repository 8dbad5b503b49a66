"""A run of tokens that is computed and drawn: a request's prompt and one of its completions.

    known    = prompt + what was drawn      what the sequence is
    computed = leading tokens whose KV is in its pages
    pending  = known - computed             1: a decode; more: a prompt, or what is computed again

Invariant: `chain` names the whole blocks of all known tokens. `computed` falls only when the pages
are given back; `generated` never does. Owned by the engine's thread.
"""

from dataclasses import dataclass, field

import torch

from kvtier.keys import BlockChain
from worker.block_table import BlockTable
from worker.requests import FinishReason

__all__ = ["TokenSequence"]


@dataclass(slots=True, eq=False)
class TokenSequence:
    """One sample of a request. Counts of tokens, unless they say blocks."""

    index: int
    """Of the sample."""
    prompt: tuple[int, ...]
    chain: BlockChain
    table: BlockTable
    generator: torch.Generator | None
    computed: int = 0
    reached: int = 0
    """The most that `computed` ever was: what lies below was there before."""
    sealed_blocks: int = 0
    """Leading blocks of the table that are resident."""
    written_blocks: int = 0
    """Leading blocks that do not count as written any more: reused, or counted already."""
    offered_blocks: int = 0
    """Leading blocks that the cache service was offered already."""
    generated: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def pending(self) -> int:
        return self.known - self.computed

    def draw(self, token: int) -> None:
        """The next token is known."""
        self.generated.append(token)
        self.chain.extend([token])

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `[start, end)` of prompt and completion."""
        count = len(self.prompt)
        return [
            *self.prompt[start : min(end, count)],
            *self.generated[max(start - count, 0) : max(end - count, 0)],
        ]

    def has(self, tokens: int) -> None:
        """The KV of its first `tokens` tokens is in its pages."""
        self.computed = tokens
        self.reached = max(self.reached, tokens)

    def give_back(self) -> None:
        """Ends its hold on pages; what is in them is not its any more."""
        self.table.clear()
        self.computed = self.sealed_blocks = 0
