"""Attention over pages, as a function that unmodified transformers models call.

    model layer -> PagedCache.update(k, v)      writes the new tokens into pages; gives them back as
                                                they are, or gathered with the past of every span to
                                                a layer that makes its keys of what is cached
                -> paged_attention(q, k, v)     hands on to the backend or to `latents.py`, which
                                                read pages; or attends span by span to what it got

Invariant: a token attends to its own sequence's tokens up to itself, inside the layer's sliding
window, and to nothing else in the pool. Runs on the engine's thread.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from worker.attention.backend import AttentionBackend, Options
from worker.attention.dense import attend_span
from worker.attention.latents import LatentLayer, absorbable
from worker.attention.scratch import Scratch
from worker.attention.step import AttentionStep
from worker.attention.survey import LayerUse
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages
from worker.paged_columns import PagedColumns

__all__ = ["FORWARD", "IMPLEMENTATION", "Forward", "PagedCache", "paged_attention"]

IMPLEMENTATION = "kvtier_paged"
"""The name under which transformers finds `paged_attention`. It is not a name that transformers
makes masks for, so none is built per layer."""

CHANGES_NOTHING = frozenset({"position_ids", "use_cache", "output_router_logits"})
"""What models pass on to attention functions that do not look at it. Anything else, an index of
the keys to attend to for one, may change the result: the list names what is known not to."""


class PagedCache(Cache):
    """What a model takes for its key-value cache. Keeps nothing itself: the pages do."""

    def __init__(
        self,
        kv: KvPages,
        uses: Mapping[int, LayerUse],
        backend: AttentionBackend,
        *,
        absorbs: bool = False,
    ) -> None:
        """`absorbs`: layers with latents are given their new tokens alone, where they can be."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.backend = backend
        self._kv = kv
        self._direct = [
            layer in uses and uses[layer].direct for layer in range(len(kv.layout.layers))
        ]
        self._scratch = Scratch()
        self._latent = {
            layer: LatentLayer(use.module, kv, layer, self._scratch)
            for layer, use in uses.items()
            if absorbs and absorbable(use, kv.layout.layers[layer])
        }

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both `[1, heads, tokens, dim]`."""
        step = FORWARD.get().step
        step.layer = layer_idx
        keys, values = self._kv.keys[layer_idx], self._kv.values[layer_idx]
        keys.write(step.slot_pages, step.slot_offsets, key_states[0])
        values.write(step.slot_pages, step.slot_offsets, value_states[0])
        if self._direct[layer_idx] or layer_idx in self._latent or step.fresh:
            return key_states, value_states
        return self._gathered(step, 0, keys), self._gathered(step, 1, values)

    def attend(
        self,
        step: AttentionStep,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """`[heads, tokens, dim]` each, after `update` of the layer; `[tokens, heads, dim]`."""
        if self._direct[step.layer]:
            return self.backend.attend(step, step.layer, query, key, value, options)
        if step.layer in self._latent:
            return self._latent[step.layer].attend(step, query, key, value, options)
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        begin = 0
        for span in step.spans:
            rows = slice(span.query_start, span.query_start + span.query_count)
            oldest = 0 if options.window is None else max(0, span.past - options.window + 1)
            keys = slice(begin + oldest, begin + span.context)
            part = attend_span(step, query[:, rows], key[:, keys], value[:, keys], options)
            out[rows] = part.transpose(0, 1)
            begin += span.context
        return out

    def _gathered(self, step: AttentionStep, which: int, columns: PagedColumns) -> torch.Tensor:
        """`[1, heads, contexts of all spans, dim]`."""
        if len(step.spans) == 1:
            found = self._scratch.gather(step, which, columns, 0, 0)
            return found[None, :, : step.spans[0].context]
        total = sum(span.context for span in step.spans)
        out = columns.tiles.new_empty(1, columns.heads, total, columns.at.dim)
        begin = 0
        for index, span in enumerate(step.spans):
            found = self._scratch.gather(step, which, columns, index, 0)
            out[0, :, begin : begin + span.context] = found[:, : span.context]
            begin += span.context
        return out


@dataclass(frozen=True, slots=True)
class Forward:
    """What is being computed, and on which pages."""

    step: AttentionStep
    cache: PagedCache


FORWARD: ContextVar[Forward] = ContextVar("kvtier_forward")
"""Set for the duration of one forward: models pass only their own arguments on."""


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The signature of transformers' attention functions; `[1, heads, tokens, dim]` each.

    `softcap` squeezes scores, `s_aux` holds a sink per head. Raises ArchitectureRefusedError for
    what it would have to leave out.
    """
    _refuse_unknown(attention_mask, dropout, is_causal, kwargs)
    forward = FORWARD.get()
    forward.step.called_layers += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    options = Options(scale, sliding_window, softcap, s_aux)
    out = forward.cache.attend(forward.step, query[0], key[0], value[0], options)
    return out[None], None


def _refuse_unknown(
    mask: torch.Tensor | None, dropout: float, is_causal: bool | None, others: dict[str, Any]
) -> None:
    if mask is not None:
        raise ArchitectureRefusedError(
            "the model attends by a mask of its own, which tokens in pages are not arranged for"
        )
    if is_causal is False:
        raise ArchitectureRefusedError("the model attends both ways: its KV is not a prefix's")
    if dropout:
        raise ArchitectureRefusedError(f"the model asks for dropout of {dropout} in attention")
    unknown = sorted(
        name for name, value in others.items() if value is not None and name not in CHANGES_NOTHING
    )
    if unknown:
        raise ArchitectureRefusedError(
            f"the model asks attention for {', '.join(unknown)}, which may change what it computes"
        )


AttentionInterface.register(IMPLEMENTATION, paged_attention)
