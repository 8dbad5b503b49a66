"""One forward of the model over a flattened batch of spans.

Invariant: after `run`, the KV of every span's tokens is in its pages; nothing else in the pool
changed. Owned by the engine's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.interface import FORWARD, IMPLEMENTATION, Forward, PagedCache
from worker.attention.step import AttentionStep
from worker.attention.survey import survey
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
    adapter: str = ""
    """Which of the added adapters it is computed with; empty: none."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class ModelRunner:
    """Runs `model` on the pages of `kv`. Raises ArchitectureRefusedError if it cannot."""

    def __init__(self, model: Any, kv: KvPages, attention: AttentionChoice | None = None) -> None:
        """`attention`: how; the first of the device's where it is not said."""
        chosen = attention or attention_choices(model.device)[0]
        uses = survey(model)
        model.set_attn_implementation(IMPLEMENTATION)
        self._model = model
        self._kv = kv
        self._cache = PagedCache(kv, uses, chosen.make(kv), absorbs=chosen.absorbs)
        self._cache_argument = {cache_argument(model): self._cache}

    def run(self, spans: Sequence[Span]) -> torch.Tensor:
        """Computes `spans`; logits `[sum of wanted_logits, vocabulary]` in their order, float32.

        Raises whatever the model raises; the pages of `spans` then hold nothing of use.
        """
        tokens = [token for span in spans for token in span.token_ids]
        step = AttentionStep.of(
            [(span.start, len(span.token_ids), span.pages) for span in spans],
            self._kv.layout.block_tokens,
            self._model.device,
        )
        current = FORWARD.set(Forward(step, self._cache))
        try:
            with torch.inference_mode():
                output = self._model(
                    input_ids=self._tensor(tokens)[None],
                    position_ids=step.positions[None],
                    use_cache=True,
                    logits_to_keep=self._tensor(_wanted_rows(spans)),
                    **self._cache_argument,
                )
        finally:
            FORWARD.reset(current)
        if step.called_layers != len(self._kv.layout.layers):
            raise ArchitectureRefusedError(
                f"{step.called_layers} of {len(self._kv.layout.layers)} layers used the paged "
                "attention; the others would attend to nothing they should"
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)


def _wanted_rows(spans: Sequence[Span]) -> list[int]:
    rows: list[int] = []
    end = 0
    for span in spans:
        end += len(span.token_ids)
        rows += range(end - span.wanted_logits, end)
    return rows
