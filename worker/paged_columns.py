"""One layer's keys, or its values, in all pages of a pool: written by slot, read by page.

Invariant: only views of the pool; nothing is kept here. Engine's thread.
"""

from math import gcd

import torch

from worker.layout import Columns

__all__ = ["PagedColumns"]


class PagedColumns:
    """`pool` is `[pages, elements of a block]`, contiguous; `at` says where the columns lie."""

    def __init__(self, pool: torch.Tensor, at: Columns, block_tokens: int) -> None:
        page_count, block_elements = pool.shape
        self.at = at
        self.tiles = pool.as_strided(
            (page_count, at.grains, at.heads_per_grain, block_tokens, at.dim),
            (block_elements, at.grain_stride, at.head_stride, at.dim, 1),
            at.first,
        )
        """`[pages, grains, heads of a grain, block_tokens, dim]`, strided."""
        self._slots = self.tiles.permute(0, 3, 1, 2, 4)
        # Rows of one head's tokens in one page, at the largest stride that meets all of them.
        self._tile = block_tokens * at.dim
        self._stride = gcd(block_elements, at.grain_stride, at.head_stride)
        count = (pool.numel() - at.first - self._tile) // self._stride + 1
        self._rows = pool.as_strided((count, self._tile), (self._stride, 1), at.first)
        self.steps = tuple(
            stride // self._stride for stride in (block_elements, at.grain_stride, at.head_stride)
        )

    @property
    def heads(self) -> int:
        return self.at.heads

    def write(self, pages: torch.Tensor, offsets: torch.Tensor, states: torch.Tensor) -> None:
        """Token `i` of `states`, `[heads, tokens, dim]`, goes to `offsets[i]` of `pages[i]`."""
        tokens = states.shape[1]
        shape = (tokens, self.at.grains, self.at.heads_per_grain, self.at.dim)
        self._slots[pages, offsets] = states.transpose(0, 1).reshape(shape)

    def read(self, pages: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """A copy of the tokens at `offsets[i]` of `pages[i]`, `[tokens, heads, dim]`."""
        return self._slots[pages, offsets].flatten(1, 2)

    def row_index(self, pages: torch.Tensor) -> torch.Tensor:
        """What `gather` takes for `pages`; the same for columns of equal `steps` and heads."""
        page, grain, head = self.steps
        grains = torch.arange(self.at.grains, device=pages.device) * grain
        heads = torch.arange(self.at.heads_per_grain, device=pages.device) * head
        return (grains[:, None, None] + heads[:, None] + pages * page).flatten()

    def gather(self, rows: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """Copies `row_index(pages)` into `room`, flat and at least as large; `[heads, tokens of the
        pages in their order, dim]`, a view of `room`."""
        out = room[: rows.numel() * self._tile].view(rows.numel(), self._tile)
        torch.index_select(self._rows, 0, rows, out=out)
        return out.view(self.heads, -1, self.at.dim)
