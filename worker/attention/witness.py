"""Watches what a model hands to attention, at any position, for the price of a few tokens.

    watch(model, tokens, positions, past) -> per layer: query, what it caches, mask, window

The model runs as it does with transformers' own eager attention and a cache that says that it
holds `past` tokens, so masks and positions are those of a request that long. Attention itself is
not computed: each token gets its own value, so a row never depends on its neighbours through it.
Invariant: the model is left as it was but for its attention implementation. Starting thread.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from worker.errors import ArchitectureRefusedError
from worker.transformers_version import cache_argument

__all__ = ["Handed", "watch"]

IMPLEMENTATION = "kvtier_witness"


@dataclass(frozen=True, slots=True)
class Handed:
    """What one layer handed over for all rows; `[1, heads, rows, dim]` each."""

    query: torch.Tensor
    key: torch.Tensor
    """As it would be cached, as is `value`."""
    value: torch.Tensor
    mask: torch.Tensor | None
    """Additive, `[1, heads or 1, rows, keys]`."""
    window: int | None


@dataclass(slots=True)
class _Seen:
    cached: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    asked: list[tuple[torch.Tensor, torch.Tensor | None, int | None]] = field(default_factory=list)


_SEEN: ContextVar[_Seen] = ContextVar("kvtier_attention_witness")


def watch(model: Any, tokens: Sequence[int], positions: Sequence[int], past: int) -> list[Handed]:
    """One forward of `tokens` at `positions`, with `past` tokens said to be cached.

    Raises ArchitectureRefusedError when the model does not run so.
    """
    model.set_attn_implementation(IMPLEMENTATION)
    seen = _Seen()
    current = _SEEN.set(seen)
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.tensor([tokens], device=model.device),
                position_ids=torch.tensor([positions], device=model.device),
                use_cache=True,
                **{cache_argument(model): _SaidCache(past)},
            )
    except Exception as error:
        raise ArchitectureRefusedError(
            f"the model does not run at position {positions[-1]}: {type(error).__name__}: {error}"
        ) from error
    finally:
        _SEEN.reset(current)
    if len(seen.asked) != len(seen.cached):
        raise ArchitectureRefusedError(
            f"{len(seen.cached)} layers cache and {len(seen.asked)} times attention was asked for"
        )
    return [
        Handed(query, *seen.cached[layer], mask, window)
        for layer, (query, mask, window) in zip(sorted(seen.cached), seen.asked, strict=True)
    ]


class _SaidCache(Cache):
    """Says that it holds `past` tokens, and gives back only what it is given."""

    def __init__(self, past: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._past = past

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _SEEN.get().cached[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._past + query_length, 0


def _own_value(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    _SEEN.get().asked.append((query, attention_mask, sliding_window))
    values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return values.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _own_value)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
