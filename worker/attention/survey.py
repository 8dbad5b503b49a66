"""What each layer does with what it caches, seen by one token that is run through the model.

Most layers attend to the very keys and values that they cache, so attention may read pages. Others
make them anew of what is cached (latents), from the whole past. Invariant: `direct` is said only of
a layer that handed attention the same memory that it cached, once. Starting thread.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from worker.errors import ArchitectureRefusedError
from worker.transformers_version import cache_argument

__all__ = ["LayerUse", "survey"]

IMPLEMENTATION = "kvtier_survey"


@dataclass(frozen=True, slots=True)
class LayerUse:
    """What one layer does."""

    direct: bool
    """Attention reads what is cached."""
    module: torch.nn.Module
    """Which called attention."""


@dataclass(slots=True)
class _Seen:
    cached: tuple[torch.Tensor, torch.Tensor] | None = None
    layer: int = -1
    uses: dict[int, list[LayerUse]] = field(default_factory=dict)


_SEEN: ContextVar[_Seen] = ContextVar("kvtier_survey")


def survey(model: Any) -> dict[int, LayerUse]:
    """By layer; a layer that calls attention not at all, or more than once, is missing.

    Leaves `model` with another attention implementation. Raises ArchitectureRefusedError when the
    model does not run so.
    """
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ArchitectureRefusedError(
            f"the model does not let its attention be replaced: {error}"
        ) from error
    seen = _Seen()
    current = _SEEN.set(seen)
    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(
                input_ids=zero,
                position_ids=zero,
                use_cache=True,
                **{cache_argument(model): _WatchingCache()},
            )
    except Exception as error:
        raise ArchitectureRefusedError(
            f"the model does not run one token: {type(error).__name__}: {error}"
        ) from error
    finally:
        _SEEN.reset(current)
    return {layer: uses[0] for layer, uses in seen.uses.items() if len(uses) == 1}


class _WatchingCache(Cache):
    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen = _SEEN.get()
        seen.cached, seen.layer = (key_states, value_states), layer_idx
        return key_states, value_states


def _watched(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    seen = _SEEN.get()
    if seen.cached is not None:
        direct = _same(key, seen.cached[0]) and _same(value, seen.cached[1])
        seen.uses.setdefault(seen.layer, []).append(LayerUse(direct, module))
    # One token attends to itself.
    values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return values.transpose(1, 2).contiguous(), None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


AttentionInterface.register(IMPLEMENTATION, _watched)
