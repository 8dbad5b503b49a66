"""A step of single queries on tensors that stay where they are: what a recorded forward reads.

Each time it is filled anew with other sequences. Rows without a sequence compute token 0 at
position 0 of a page that is nobody's: a context of one token, so that they give numbers, all the
same ones, and meet nobody else's. Engine's thread.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from worker.attention.step import AttentionStep, MakeNumbers, placed, split

__all__ = ["StaticStep"]


class StaticStep(AttentionStep):
    """`batch` single queries, each with at most `table_pages` pages."""

    def __init__(
        self,
        batch: int,
        block_tokens: int,
        device: torch.device,
        table_pages: int,
        scratch_page: int,
    ) -> None:
        """`scratch_page`: no sequence has it."""
        self._numbers = torch.zeros(4, batch, dtype=torch.int64, device=device)
        positions, pages, offsets, self.token_ids = self._numbers
        super().__init__((), block_tokens, device, positions, pages, offsets)
        self.table_pages = table_pages
        self.all_rows = torch.arange(batch, device=device)
        """Of the logits that are wanted: all."""
        self._padding = (0, 1, (scratch_page,))
        self._sent: dict[Hashable, tuple[MakeNumbers, torch.Tensor, list[torch.Tensor]]] = {}

    def fill(
        self, spans: Sequence[tuple[int, int, Sequence[int]]], token_ids: Sequence[int]
    ) -> None:
        """As many `spans` of one token as the batch, or fewer; start, 1 and pages of each."""
        missing = len(self.all_rows) - len(spans)
        self.spans, at = placed([*spans, *[self._padding] * missing], self.block_tokens)
        numbers = np.vstack([at, np.array([*token_ids, *[0] * missing])])
        self.memo.clear()
        # What was made inside a forward may be changed in this mode only.
        with torch.inference_mode():
            self._numbers.copy_(torch.from_numpy(numbers))
            for make, whole, _ in self._sent.values():
                whole.copy_(torch.from_numpy(np.concatenate([each.ravel() for each in make(self)])))

    def sent(self, name: Hashable, make: MakeNumbers) -> list[torch.Tensor]:
        """The same tensors for a name each time, filled anew with the step."""
        if name not in self._sent:
            whole, parts = split(self, make(self))
            self._sent[name] = (make, whole, parts)
        return self._sent[name][2]
