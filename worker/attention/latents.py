"""Attention over cached latents without making a context's keys and values of them at each step.

A layer of multi-head latent attention caches one latent and one rotary key a token, and makes keys
and values of all heads from them: of the whole context at each step, if it is given the whole
context. It is given the new tokens' alone, and attention does the rest:

    single queries   the expansion is moved to the other side: `(W_k x) . q = x . (W_k^T q)`, and
                     values are made of the weighed latent; the context stays as it is cached
    a piece          its past is expanded once, by the layer's own function

Invariant: only for layers of the known kind, found by what they have (`absorbable`); the self-test
proves that it is the same. Engine's thread.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from worker.attention.backend import Options
from worker.attention.dense import attend_span
from worker.attention.scratch import Scratch
from worker.attention.step import AttentionStep, SpanPlace
from worker.attention.survey import LayerUse
from worker.kv_pages import KvPages
from worker.layout import BlockLayout, LayerLayout

__all__ = ["LatentLayer", "absorbable", "has_latents"]


def has_latents(uses: Mapping[int, LayerUse], layout: BlockLayout) -> bool:
    """Whether any layer is of the kind."""
    return any(absorbable(use, layout.layers[layer]) for layer, use in uses.items())


def absorbable(use: LayerUse, layer: LayerLayout) -> bool:
    """Whether a layer is of the kind: what it caches, its projection and its own expansion."""
    module: Any = use.module
    project = getattr(module, "kv_b_proj", None)
    one_each = layer.key_heads == layer.value_heads == 1
    if use.direct or not one_each or type(project) is not nn.Linear:
        return False
    # Whatever hooks add to the projection, its weight alone does not tell.
    hooked = project._forward_hooks or project._forward_pre_hooks
    if project.bias is not None or hooked or not callable(getattr(module, "expand_kv", None)):
        return False
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    rank, plain, rotary, value = (getattr(module, name, None) for name in names)
    if not all(isinstance(x, int) for x in (rank, plain, rotary, value)):
        return False
    right = (layer.key_dim, layer.value_dim, project.in_features) == (rank, rotary, rank)
    return right and project.out_features % (plain + value) == 0


class LatentLayer:
    """One such layer over the pages of a pool."""

    def __init__(self, module: Any, kv: KvPages, layer: int, scratch: Scratch) -> None:
        self._module = module
        self._latents, self._rotary = kv.keys[layer], kv.values[layer]
        self._scratch = scratch

    def attend(
        self,
        step: AttentionStep,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """`keys` and `values` are the new tokens', expanded; else as `AttentionBackend.attend`."""
        out = query.new_empty(query.shape[1], query.shape[0], values.shape[-1])
        plain_scores = options.softcap is None and options.sinks is None
        for index, span in enumerate(step.spans):
            rows = slice(span.query_start, span.query_start + span.query_count)
            own = query[:, rows], keys[:, rows], values[:, rows]
            if span.past == 0:
                part = attend_span(step, *own, options)
            elif span.query_count == 1 and plain_scores:
                part = self._absorbed(step, index, own[0], options)
            else:
                part = self._expanded(step, index, *own, options)
            out[rows] = part.transpose(0, 1)
        return out

    def _absorbed(
        self, step: AttentionStep, index: int, query: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """`query` `[heads, 1, dim]`; `[heads, 1, value dim]`."""
        module = self._module
        latents, rotary = self._cached(step, index, _oldest(step.spans[index], options))
        plain = module.qk_nope_head_dim
        weight = module.kv_b_proj.weight.view(query.shape[0], plain + module.v_head_dim, -1)
        latent_query = query[:, :, :plain] @ weight[:, :plain]
        scores = latent_query[:, 0] @ latents.t() + query[:, 0, plain:] @ rotary.t()
        shares = torch.softmax(scores.float() * options.scale, -1).to(latents.dtype)
        found = (shares @ latents)[:, None]
        out: torch.Tensor = found @ weight[:, plain:].transpose(1, 2)
        return out

    def _expanded(
        self,
        step: AttentionStep,
        index: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        span = step.spans[index]
        oldest = _oldest(span, options)
        latents, rotary = self._cached(step, index, oldest)
        past = span.past - oldest
        old = self._module.expand_kv(latents[None, None, :past], rotary[None, None, :past])
        all_keys, all_values = (
            torch.cat([before[0], new], 1) for before, new in zip(old, (keys, values), strict=True)
        )
        return attend_span(step, query, all_keys, all_values, options)

    def _cached(
        self, step: AttentionStep, index: int, oldest: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and rotary keys of a span from token `oldest` on, `[tokens, dim]`."""
        first_page, begin = divmod(oldest, step.block_tokens)
        end = step.spans[index].context - first_page * step.block_tokens
        latents, rotary = (
            self._scratch.gather(step, which, columns, index, first_page)[0, begin:end]
            for which, columns in enumerate((self._latents, self._rotary))
        )
        return latents, rotary


def _oldest(span: SpanPlace, options: Options) -> int:
    return 0 if options.window is None else max(0, span.past - options.window + 1)
