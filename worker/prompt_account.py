"""Where each block of a prompt came from, written once: what a bill is made of.

    nothing yet -> hit (tier) -> computed        before the first token
    nothing yet -> computed                      for good

A request may lose its pages and be taken up again. What it computed stays computed, wherever it is
found the second time: it is no hit. What was a hit, is lost and has to be computed was none. After
the first token nothing changes any more: what is computed again then is our cost.

Invariant: every token of the prompt is in one class at most; hit tokens are whole blocks that the
request reused. Owned by the engine's thread.
"""

from collections.abc import Sequence
from itertools import groupby

from kvtier.blocks import Tier
from worker.requests import SourceRun

__all__ = ["PromptAccount"]

_NOTHING = 0
_COMPUTED = 255


class PromptAccount:
    """Of a prompt of `prompt_tokens` tokens. The last, partial block counts as one here."""

    def __init__(self, prompt_tokens: int, block_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._block_tokens = block_tokens
        self._sources = bytearray(-(-prompt_tokens // block_tokens))
        self._closed = False

    @property
    def closed(self) -> bool:
        """The first token is there."""
        return self._closed

    def close(self) -> None:
        self._closed = True

    def reused(self, first_block: int, tiers: Sequence[Tier]) -> None:
        """Whole blocks from `first_block` on came from these tiers."""
        if self._closed:
            return
        for index, tier in enumerate(tiers, first_block):
            if self._sources[index] == _NOTHING:
                self._sources[index] = tier

    def computed(self, start: int, end: int) -> bool:
        """Tokens `[start, end)` were computed, from a block's beginning to a block's or the
        prompt's end; whether something of them had been a hit."""
        if self._closed:
            return False
        blocks = slice(start // self._block_tokens, -(-end // self._block_tokens))
        lost_hit = any(source not in (_NOTHING, _COMPUTED) for source in self._sources[blocks])
        self._sources[blocks] = bytes([_COMPUTED]) * len(self._sources[blocks])
        return lost_hit

    @property
    def hit_tokens_by_tier(self) -> dict[Tier, int]:
        """Tiers that gave something."""
        counts = {tier: self._sources.count(tier) * self._block_tokens for tier in Tier}
        return {tier: tokens for tier, tokens in counts.items() if tokens}

    @property
    def computed_tokens(self) -> int:
        tokens = self._sources.count(_COMPUTED) * self._block_tokens
        if self._sources[-1] == _COMPUTED:
            tokens -= len(self._sources) * self._block_tokens - self._prompt_tokens
        return tokens

    @property
    def runs(self) -> tuple[SourceRun, ...]:
        """Where its blocks came from, first to last, up to the first of which nothing is known
        yet: those behind it count in no class either."""
        found = []
        for source, blocks in groupby(self._sources):
            if source == _NOTHING:
                break
            tier = None if source == _COMPUTED else Tier(source)
            found.append(SourceRun(tier, sum(1 for _ in blocks)))
        return tuple(found)
