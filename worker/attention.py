"""Attention over pages, as a function that unmodified transformers models call.

    model layer -> PagedCache.update(k, v)      scatters new tokens into pages, returns all KV of
                                                the step's spans, gathered page by page
                -> paged_attention(q, K, V)     attends span by span, each to its own keys only

A step is flattened into one row of tokens: span after span, each with its own past. Masks are made
once per step and shared by all layers. Invariant: a token attends to its own sequence's tokens up
to itself, inside the layer's sliding window, and to nothing else in the pool.

The step in progress reaches the function through a context variable, set for the duration of one
forward: the models pass only their own arguments on. Runs on the engine's thread.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages
from worker.paged_columns import PagedColumns

__all__ = [
    "CURRENT_STEP",
    "IMPLEMENTATION",
    "AttentionStep",
    "PagedCache",
    "Segment",
    "hidden_keys",
]

IMPLEMENTATION = "kvtier_paged"
"""The name under which transformers finds `paged_attention`. It is not a name that transformers
makes masks for, so none is built per layer."""

CHANGES_NOTHING = frozenset({"position_ids", "use_cache", "output_router_logits"})
"""What models pass on to attention functions that do not look at it. Anything else, an index of
the keys to attend to for one, may change the result: the list names what is known not to."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One span inside the flattened step. Counts of tokens."""

    query_start: int
    query_count: int
    key_start: int
    """Where the span's keys begin in what `PagedCache.update` returned."""
    context: int
    """Keys of the span: its past and itself."""


@dataclass(slots=True)
class AttentionStep:
    """Everything attention has to know about one forward. Built by the model runner."""

    segments: tuple[Segment, ...]
    slot_pages: torch.Tensor
    """Page of each new token, `[tokens]`."""
    slot_offsets: torch.Tensor
    """Place inside that page, `[tokens]`."""
    gather_pages: torch.Tensor | None
    """Pages of all spans, one after the other; None when no span has a past."""
    called_layers: int = 0
    masks: dict[tuple[int, int, int | None, torch.dtype], torch.Tensor] = field(
        default_factory=dict
    )

    row_indexes: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def rows(self, columns: PagedColumns, pages: torch.Tensor) -> torch.Tensor:
        """`columns.row_index(pages)`, made once for layers that lie alike."""
        name = (*columns.steps, columns.at.grains, columns.at.heads_per_grain)
        made = self.row_indexes.get(name)
        if made is None:
            made = self.row_indexes[name] = columns.row_index(pages)
        return made

    def mask(self, queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive `[queries, keys]`: the last query is at the last key."""
        name = (queries, keys, window, like.dtype)
        made = self.masks.get(name)
        if made is None:
            query_at = torch.arange(keys - queries, keys, device=like.device)[:, None]
            key_at = torch.arange(keys, device=like.device)[None]
            hidden = hidden_keys(query_at, key_at, window)
            made = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
            self.masks[name] = made.masked_fill_(hidden, float("-inf"))
        return self.masks[name]


def hidden_keys(query_at: torch.Tensor, key_at: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which keys a query does not see, by positions of any shapes that go together."""
    hidden = key_at > query_at
    if window is not None:
        hidden |= key_at <= query_at - window
    return hidden


CURRENT_STEP: ContextVar[AttentionStep] = ContextVar("kvtier_attention_step")


class PagedCache(Cache):
    """What a model takes for its key-value cache. Keeps nothing itself: the pages do."""

    def __init__(self, kv: KvPages) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._kv = kv
        # Gathered KV lives until the layer's attention is done, so all layers share two buffers;
        # fresh ones for every layer cost more in page faults than the copy itself.
        self._scratch = [torch.empty(0), torch.empty(0)]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both `[1, heads, tokens, dim]`, returned with the past of every span."""
        step = CURRENT_STEP.get()
        all_keys = self._exchange(0, self._kv.keys[layer_idx], key_states, step)
        all_values = self._exchange(1, self._kv.values[layer_idx], value_states, step)
        return all_keys, all_values

    def _exchange(
        self, which: int, columns: PagedColumns, states: torch.Tensor, step: AttentionStep
    ) -> torch.Tensor:
        columns.write(step.slot_pages, step.slot_offsets, states[0])
        if step.gather_pages is None:
            return states
        rows = step.rows(columns, step.gather_pages)
        room = self._room(which, rows.numel() * columns.tiles[0, 0, 0].numel(), states)
        return columns.gather(rows, room)[None]

    def _room(self, which: int, elements: int, like: torch.Tensor) -> torch.Tensor:
        if self._scratch[which].numel() < elements:
            # Grown by half again, so a growing context does not reallocate at every page.
            self._scratch[which] = like.new_empty(elements + elements // 2)
        return self._scratch[which][:elements]


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

    `softcap` squeezes scores, `s_aux` holds a sink per head; both leave the fused kernel. Raises
    ArchitectureRefusedError for what it would have to leave out.
    """
    _refuse_unknown(attention_mask, dropout, is_causal, kwargs)
    step = CURRENT_STEP.get()
    step.called_layers += 1
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for segment in step.segments:
        first, count = segment.query_start, segment.query_count
        oldest = 0
        window = sliding_window
        if window is not None:
            oldest = max(0, segment.context - count - window + 1)
            window = window if segment.context > window else None
        begin, end = segment.key_start + oldest, segment.key_start + segment.context
        q = query[:, :, first : first + count]
        k, v = key[:, :, begin:end], value[:, :, begin:end]
        if softcap is None and s_aux is None:
            part = _fused(step, q, k, v, window, scaling)
        else:
            part = _explicit(step, q, k, v, window, scaling, softcap, s_aux)
        out[:, first : first + count] = part.transpose(1, 2)
    return out, None


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


def _fused(
    step: AttentionStep,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if queries == 1:
        return F.scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=grouped)
    if queries == keys and window is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    mask = step.mask(queries, keys, window, q)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped
    )


def _explicit(
    step: AttentionStep,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + step.mask(q.shape[2], k.shape[2], window, scores)
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return weights.to(v.dtype) @ v


AttentionInterface.register(IMPLEMENTATION, paged_attention)
