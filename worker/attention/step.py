"""What attention has to know about one forward: the spans, where their tokens go, what is shared.

A step is flattened into one row of tokens: span after span, each with its own past. Invariant: a
step belongs to one forward; `memo` keeps what its layers share and ends with it. Engine's thread.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from worker.paged_columns import PagedColumns

__all__ = ["AttentionStep", "MakeNumbers", "Numbers", "SpanPlace", "placed", "split"]

Made = TypeVar("Made")

Numbers = NDArray[np.int64]
MakeNumbers = Callable[["AttentionStep"], Sequence[Numbers]]
"""What follows from a step's spans. Of a step that is filled again and again its shapes may follow
from how many spans there are, and from nothing else of them."""


@dataclass(frozen=True, slots=True)
class SpanPlace:
    """One span inside the flattened step. Counts of tokens."""

    query_start: int
    query_count: int
    context: int
    """Keys of the span: its past and itself."""
    pages: NDArray[np.int64]
    """The sequence's pages, up to the last of `context`."""

    @property
    def past(self) -> int:
        return self.context - self.query_count


@dataclass(slots=True)
class AttentionStep:
    """Built by `AttentionStep.of`. Tensors are on the device of the pages."""

    spans: tuple[SpanPlace, ...]
    block_tokens: int
    device: torch.device
    positions: torch.Tensor
    """Of each token in its sequence, `[tokens]`, as are the next two."""
    slot_pages: torch.Tensor
    slot_offsets: torch.Tensor
    called_layers: int = 0
    layer: int = -1
    """The layer whose new keys and values were written last."""
    memo: dict[Hashable, object] = field(default_factory=dict)
    table_pages: int | None = None
    """Of a step that is filled again and again: as long is the table of each span."""

    @staticmethod
    def of(
        spans: Sequence[tuple[int, int, Sequence[int]]], block_tokens: int, device: torch.device
    ) -> "AttentionStep":
        """`spans`: start, count of tokens and pages of each."""
        places, numbers = placed(spans, block_tokens)
        # One copy to the device for all of it.
        on_device = torch.from_numpy(numbers).to(device)
        return AttentionStep(places, block_tokens, device, on_device[0], on_device[1], on_device[2])

    @property
    def fresh(self) -> bool:
        """No span has a past."""
        return all(span.past == 0 for span in self.spans)

    def once(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave the first time that this step asked for `name`."""
        if name not in self.memo:
            self.memo[name] = make()
        return cast(Made, self.memo[name])

    def sent(self, name: Hashable, make: MakeNumbers) -> list[torch.Tensor]:
        """What `make` says of this step, on the device in one copy; made once for a name."""
        return self.once(name, lambda: split(self, make(self))[1])

    def tensor(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def rows(self, columns: PagedColumns, span: int, first_page: int) -> torch.Tensor:
        """`columns.row_index` of a span's pages from `first_page` on; for layers that lie alike,
        made once."""
        shape = (*columns.steps, columns.at.grains, columns.at.heads_per_grain)
        pages = self.once(
            ("pages", span, first_page), lambda: self.tensor(self.spans[span].pages[first_page:])
        )
        return self.once(("rows", span, first_page, shape), lambda: columns.row_index(pages))


def placed(
    spans: Sequence[tuple[int, int, Sequence[int]]], block_tokens: int
) -> tuple[tuple[SpanPlace, ...], Numbers]:
    """Where `spans` (start, count of tokens, pages) are in a step; and of each token its position,
    page and offset, `[3, tokens]`."""
    places, positions, slots = [], [], []
    row = 0
    for start, count, pages in spans:
        end = start + count
        table = np.asarray(pages[: -(-end // block_tokens)], dtype=np.int64)
        at = np.arange(start, end)
        places.append(SpanPlace(row, count, end, table))
        positions.append(at)
        slots.append(table[at // block_tokens])
        row += count
    at = np.concatenate(positions)
    return tuple(places), np.stack([at, np.concatenate(slots), at % block_tokens])


def split(
    step: AttentionStep, arrays: Sequence[Numbers]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`arrays` on the step's device, in one run and each as a view of it."""
    whole = step.tensor(np.concatenate([array.ravel() for array in arrays]))
    parts = torch.split(whole, [array.size for array in arrays])
    return whole, [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
