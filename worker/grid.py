"""The grid of a deterministic worker: where prompts are cut, whatever runs beside them. Pure.

    0         G         2G        3G     prompt's end
    |  piece  |  piece  |  piece  |  rest  | token | token | ...
     kept      kept      kept      computed by each request that wants it

A piece of G tokens is computed in one forward of its own, after pieces that were computed so or
taken from a cache that has only such pieces. So its KV comes out of the same numbers in the same
shapes for every request, and a hit that ends where a piece does leaves the rest to be computed as
it is without the hit. What is shorter than a piece, or was generated token by token, would come out
of other shapes for a longer prompt: it is kept nowhere.
"""

from dataclasses import dataclass

__all__ = ["NO_GRID", "Grid"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pieces of `piece_blocks` blocks of `block_tokens` tokens; 0: there is no grid."""

    piece_blocks: int = 0
    block_tokens: int = 0

    @staticmethod
    def of(step_tokens: int, block_tokens: int) -> "Grid":
        """Pieces of `step_tokens`, rounded down to whole blocks, at least one."""
        return Grid(max(1, step_tokens // block_tokens), block_tokens)

    @property
    def fixed(self) -> bool:
        """Whether there is one."""
        return self.piece_blocks > 0

    @property
    def piece_tokens(self) -> int:
        return self.piece_blocks * self.block_tokens

    def whole(self, blocks: int) -> int:
        """Of so many leading blocks those in whole pieces: what a hit may have."""
        return blocks - blocks % self.piece_blocks if self.fixed else blocks

    def kept(self, blocks: int, prompt_tokens: int) -> int:
        """Of so many leading computed blocks those that may be found by others."""
        if not self.fixed:
            return blocks
        return self.whole(min(blocks, prompt_tokens // self.block_tokens))

    def piece_end(self, computed: int, known: int) -> int:
        """Where the piece ends that comes after `computed` tokens. Requires a grid."""
        return min(known, (computed // self.piece_tokens + 1) * self.piece_tokens)


NO_GRID = Grid()
