"""One forward of the model over a flattened batch of spans.

Invariant: after `run`, the KV of every span's tokens is in its pages; nothing else in the pool
changed. Owned by the engine's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.attention import (
    CURRENT_STEP,
    IMPLEMENTATION,
    AttentionStep,
    PagedCache,
    Segment,
)
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages, PageId
from worker.transformers_version import cache_argument

__all__ = ["ModelRunner", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """A run of one sequence's tokens to compute."""

    token_ids: Sequence[int]
    start: int
    """Position of the first; the KV of all positions before it is in `pages`."""
    pages: Sequence[PageId]
    """The sequence's pages, long enough for the span."""
    wanted_logits: int
    """Of how many of its last tokens the logits are wanted."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class ModelRunner:
    """Runs `model` on the pages of `kv`. Raises ArchitectureRefusedError if it cannot."""

    def __init__(self, model: Any, kv: KvPages) -> None:
        try:
            model.set_attn_implementation(IMPLEMENTATION)
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise ArchitectureRefusedError(
                f"the model does not let its attention be replaced: {error}"
            ) from error
        self._model = model
        self._kv = kv
        self._cache_argument = {cache_argument(model): PagedCache(kv)}

    def run(self, spans: Sequence[Span]) -> torch.Tensor:
        """Computes `spans`; logits `[sum of wanted_logits, vocabulary]` in their order, float32.

        Raises whatever the model raises; the pages of `spans` then hold nothing of use.
        """
        tokens = [token for span in spans for token in span.token_ids]
        positions = [at for span in spans for at in range(span.start, span.end)]
        step = self._attention_step(spans, positions)
        current = CURRENT_STEP.set(step)
        try:
            with torch.inference_mode():
                output = self._model(
                    input_ids=self._tensor(tokens)[None],
                    position_ids=self._tensor(positions)[None],
                    use_cache=True,
                    logits_to_keep=self._tensor(_wanted_rows(spans)),
                    **self._cache_argument,
                )
        finally:
            CURRENT_STEP.reset(current)
        if step.called_layers != len(self._kv.layout.layers):
            raise ArchitectureRefusedError(
                f"{step.called_layers} of {len(self._kv.layout.layers)} layers used the paged "
                "attention; the others would attend to nothing they should"
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _attention_step(self, spans: Sequence[Span], positions: list[int]) -> AttentionStep:
        size = self._kv.layout.block_tokens
        fresh = all(span.start == 0 for span in spans)
        segments: list[Segment] = []
        slot_pages: list[PageId] = []
        gather_pages: list[PageId] = []
        query_start = 0
        for span in spans:
            count = len(span.token_ids)
            key_start = query_start if fresh else len(gather_pages) * size
            segments.append(Segment(query_start, count, key_start, span.end))
            slot_pages += [span.pages[at // size] for at in range(span.start, span.end)]
            gather_pages += span.pages[: -(-span.end // size)]
            query_start += count
        return AttentionStep(
            segments=tuple(segments),
            slot_pages=self._tensor(slot_pages),
            slot_offsets=self._tensor([at % size for at in positions]),
            gather_pages=None if fresh else self._tensor(gather_pages),
        )

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)


def _wanted_rows(spans: Sequence[Span]) -> list[int]:
    rows: list[int] = []
    end = 0
    for span in spans:
        end += len(span.token_ids)
        rows += range(end - span.wanted_logits, end)
    return rows
