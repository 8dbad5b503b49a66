"""Attention by torch alone: a span's pages are gathered into one run, then attended to.

A prompt's piece costs far more to attend than to gather. Single queries do not, so where the
kernel gives sums they attend to the pages where they lie (`single_queries.py`). Only pages inside
the layer's window are gathered or looked at.
"""

from collections.abc import Iterable

import torch

from worker.attention.backend import Options
from worker.attention.dense import attend_span, gives_sums
from worker.attention.scratch import Scratch
from worker.attention.single_queries import SingleQueries, single_queries
from worker.attention.step import AttentionStep
from worker.kv_pages import KvPages

__all__ = ["GatheringBackend", "InPlaceBackend"]


class GatheringBackend:
    """Every span's keys and values are gathered."""

    name = "gather+sdpa"

    def __init__(self, kv: KvPages) -> None:
        self._kv = kv
        self._scratch = Scratch()

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        out = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        self._gathered(step, layer, query, (keys, values), options, range(len(step.spans)), out)
        return out

    def _gathered(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        options: Options,
        spans: Iterable[int],
        out: torch.Tensor,
    ) -> None:
        """Fills the rows of `spans` in `out`."""
        keys, values = new
        for index in spans:
            span = step.spans[index]
            rows = slice(span.query_start, span.query_start + span.query_count)
            own = keys[:, rows], values[:, rows]
            part = self._attend(step, index, layer, query[:, rows], own, options)
            out[rows] = part.transpose(0, 1)

    def _attend(
        self,
        step: AttentionStep,
        index: int,
        layer: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        options: Options,
    ) -> torch.Tensor:
        span = step.spans[index]
        if span.past == 0:
            return attend_span(step, query, *new, options)
        oldest = 0
        if options.window is not None:
            oldest = max(0, span.past - options.window + 1)
        first_page, begin = divmod(oldest, step.block_tokens)
        end = span.context - first_page * step.block_tokens
        keys, values = (
            self._scratch.gather(step, which, columns[layer], index, first_page)[:, begin:end]
            for which, columns in enumerate((self._kv.keys, self._kv.values))
        )
        return attend_span(step, query, keys, values, options)


class InPlaceBackend(GatheringBackend):
    """Single queries attend to pages where they lie, a step's all at once, where that is faster."""

    name = "pages+sdpa"

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        if not self._in_place(step, layer, values, options):
            return super().attend(step, layer, query, keys, values, options)
        out = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        pieces = [index for index, span in enumerate(step.spans) if span.query_count > 1]
        self._gathered(step, layer, query, (keys, values), options, pieces, out)
        singles = self._singles(step, options.window)
        out[singles.query_rows] = singles.attend(
            query, self._kv.keys[layer], self._kv.values[layer], options, self._scratch
        )
        return out

    def _in_place(
        self, step: AttentionStep, layer: int, values: torch.Tensor, options: Options
    ) -> bool:
        at = self._kv.keys[layer].at, self._kv.values[layer].at
        one_stride = all(min(x.grains, x.heads_per_grain) == 1 for x in at)
        same = at[0].dim == at[1].dim
        usable = one_stride and same and options.softcap is None and gives_sums(values, values)
        if not usable:
            return False
        singles = self._singles(step, options.window)
        return singles.count > 0 and singles.worth

    def _singles(self, step: AttentionStep, window: int | None) -> SingleQueries:
        return step.once(("singles", window), lambda: single_queries(step, window))
