"""Memory to gather pages into. Engine's thread."""

import torch

from worker.attention.step import AttentionStep
from worker.paged_columns import PagedColumns

__all__ = ["Scratch"]


class Scratch:
    """Memory for gathered keys and values, which layers and spans use one after the other: fresh
    memory for each costs more in page faults than the copy itself."""

    def __init__(self) -> None:
        self._rooms = [torch.empty(0), torch.empty(0)]

    def gather(
        self, step: AttentionStep, which: int, columns: PagedColumns, span: int, first_page: int
    ) -> torch.Tensor:
        """`[heads, tokens, dim]` of a span's pages from `first_page` on; `which` of two rooms."""
        return self.gather_rows(which, columns, step.rows(columns, span, first_page))

    def gather_rows(self, which: int, columns: PagedColumns, rows: torch.Tensor) -> torch.Tensor:
        """The same of `columns.row_index` of any pages."""
        elements = rows.numel() * columns.tiles.shape[3] * columns.at.dim
        room = self._rooms[which]
        if room.numel() < elements:
            # Grown by half again, so a growing context does not reallocate at every page.
            room = columns.tiles.new_empty(elements + elements // 2)
            self._rooms[which] = room
        return columns.gather(rows, room)
