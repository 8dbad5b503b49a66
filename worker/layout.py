"""How one block of KV lies in memory: what each layer caches, and in which order.

    block: | layer 0 keys | layer 0 values | layer 1 keys | layer 1 values | ...
    keys:  [block_tokens, key_heads, key_dim], row-major; values alike

Learned from the model itself by running one token through it with a cache that only records
(`probe_layout`), so a model that caches latents instead of heads, or other shapes in some layers,
is laid out as it is. Invariant: the layout, its text included, depends on shapes alone. Frozen.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from worker.errors import ArchitectureRefusedError
from worker.transformers_version import cache_argument

__all__ = ["BlockLayout", "LayerLayout", "probe_layout"]


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """What one layer keeps per token."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int

    @property
    def key_elements(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_elements(self) -> int:
        return self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All layers of one block."""

    layers: tuple[LayerLayout, ...]
    block_tokens: int
    dtype: torch.dtype

    @property
    def block_elements(self) -> int:
        return self.block_tokens * sum(x.key_elements + x.value_elements for x in self.layers)

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.dtype.itemsize

    def describe(self) -> str:
        """Text for the namespace: equal text means interchangeable bytes."""
        runs: list[tuple[LayerLayout, int]] = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer:
                runs[-1] = (layer, runs[-1][1] + 1)
            else:
                runs.append((layer, 1))
        return "block-first;" + ";".join(
            f"{count}*k{x.key_heads}x{x.key_dim}v{x.value_heads}x{x.value_dim}" for x, count in runs
        )


class _RecordingCache(Cache):
    """Notes what every layer asks to keep, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.seen: dict[int, LayerLayout] = {}

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, key_heads, _, key_dim = key_states.shape
        _, value_heads, _, value_dim = value_states.shape
        self.seen[layer_idx] = LayerLayout(key_heads, key_dim, value_heads, value_dim)
        return key_states, value_states


def probe_layout(model: Any, block_tokens: int) -> BlockLayout:
    """Runs one token through `model` and returns what its layers cache.

    Raises ArchitectureRefusedError when the model cannot run so, or a layer caches nothing.
    """
    recording = _RecordingCache()
    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(
                input_ids=zero,
                position_ids=zero,
                use_cache=True,
                **{cache_argument(model): recording},
            )
    except Exception as error:
        raise ArchitectureRefusedError(
            f"the model does not run with a plain key-value cache: {type(error).__name__}: {error}"
        ) from error
    count = int(model.config.get_text_config().num_hidden_layers)
    silent = [index for index in range(count) if index not in recording.seen]
    if silent:
        raise ArchitectureRefusedError(
            f"layers {_ranges(silent)} of {count} do not use the key-value cache; their state "
            "(recurrent, convolutional or shared) cannot be named by blocks of tokens"
        )
    if set(recording.seen) != set(range(count)):
        raise ArchitectureRefusedError(
            f"the model caches {len(recording.seen)} layers where its configuration says {count}"
        )
    layers = tuple(recording.seen[index] for index in range(count))
    return BlockLayout(layers, block_tokens, model.dtype)


def _ranges(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8])
    return shown if len(numbers) <= 8 else f"{shown}, ..."
