"""One forward of the model over a flattened batch of spans.

Invariant: after `run`, the KV of every span's tokens is in its pages; nothing else in the pool
changed. Owned by the engine's thread.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.interface import FORWARD, IMPLEMENTATION, Forward, PagedCache
from worker.attention.step import AttentionStep
from worker.attention.survey import survey
from worker.decode_steps import DecodeSteps, recorder_for
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages, PageId
from worker.transformers_version import cache_argument

if TYPE_CHECKING:
    from worker.products.few_rows import FewRows

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

    def __init__(
        self,
        model: Any,
        kv: KvPages,
        attention: AttentionChoice | None = None,
        context_tokens: int | None = None,
    ) -> None:
        """`attention`: how; the first of the device's where it is not said. `context_tokens`: how
        long sequences may be; None: as long as the pool."""
        chosen = attention or attention_choices(model.device)[0]
        uses = survey(model)
        model.set_attn_implementation(IMPLEMENTATION)
        self._model = model
        self._kv = kv
        self._cache = PagedCache(kv, uses, chosen.make(kv), absorbs=chosen.absorbs)
        self._cache_argument = {cache_argument(model): self._cache}
        self._few_rows = _few_rows(model) if chosen.few_rows else None
        self.decodes: DecodeSteps | None = None
        """Recorded ones, where the way of attending says so."""
        if chosen.records:
            # What a layer makes of its whole past has another shape in each step.
            indirect = sum(not uses[n].direct for n in range(len(kv.layout.layers)) if n in uses)
            if indirect or len(uses) < len(kv.layout.layers):
                raise ValueError("layers that make keys of what is cached cannot be recorded")
            context = context_tokens or kv.page_count * kv.layout.block_tokens
            self.decodes = DecodeSteps(
                self.forward, kv, model.device, context, recorder_for(model.device)
            )

    def run(self, spans: Sequence[Span]) -> torch.Tensor:
        """Computes `spans`; logits `[sum of wanted_logits, vocabulary]` in their order, float32.

        Raises whatever the model raises; the pages of `spans` then hold nothing of use.
        """
        if self.decodes is not None and all(len(span.token_ids) == 1 for span in spans):
            found = self.decodes.run(
                [span.start for span in spans],
                [span.token_ids[0] for span in spans],
                [span.pages for span in spans],
            )
            if found is not None:
                return found
        tokens = [token for span in spans for token in span.token_ids]
        step = AttentionStep.of(
            [(span.start, len(span.token_ids), span.pages) for span in spans],
            self._kv.layout.block_tokens,
            self._model.device,
        )
        return self.forward(step, self._tensor(tokens), self._tensor(_wanted_rows(spans)))

    def forward(
        self, step: AttentionStep, token_ids: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Computes `step`, whose tokens are `token_ids`; the logits of its `rows`, as `run` has
        them."""
        step.called_layers = 0
        current = FORWARD.set(Forward(step, self._cache))
        try:
            with torch.inference_mode(), self._products(token_ids.numel()):
                output = self._model(
                    input_ids=token_ids[None],
                    position_ids=step.positions[None],
                    use_cache=True,
                    logits_to_keep=rows,
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

    def _products(self, rows: int) -> AbstractContextManager[None]:
        return nullcontext() if self._few_rows is None else self._few_rows.during(rows)

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)


def _few_rows(model: Any) -> "FewRows":
    # Imported only here: it brings a compiler.
    from worker.products.few_rows import FewRows

    return FewRows(model)


def _wanted_rows(spans: Sequence[Span]) -> list[int]:
    rows: list[int] = []
    end = 0
    for span in spans:
        end += len(span.token_ids)
        rows += range(end - span.wanted_logits, end)
    return rows
