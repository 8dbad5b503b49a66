"""How one block of KV lies in memory: what each layer caches, and in which order.

    block: | grain 0 | grain 1 | ...        a grain: an equal share of every layer's heads
    grain: | layer 0 keys | layer 0 values | layer 1 keys | ...
    keys:  [heads of the grain, block_tokens, key_dim], row-major; values alike

So whoever computes a contiguous share of the heads owns one run of the block's bytes, and its run
is a block of the same order: how many share the work is not in the bytes (docs/formats/block.md).

Learned from the model itself by running one token through it with a cache that only records
(`probe_layout`), so a model that caches latents instead of heads, or other shapes in some layers,
is laid out as it is. Invariant: the layout, its text included, depends on shapes alone. Frozen.
"""

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from worker.errors import ArchitectureRefusedError
from worker.transformers_version import cache_argument

__all__ = ["BlockLayout", "Columns", "LayerLayout", "probe_layout"]


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
class Columns:
    """Where one layer's keys, or its values, lie in a block. Counts and strides of elements.

    Head `h` is `h % heads_per_grain` of grain `h // heads_per_grain`.
    """

    first: int
    """Of grain 0, head 0, token 0."""
    grains: int
    heads_per_grain: int
    grain_stride: int
    head_stride: int
    dim: int
    """Also the stride of tokens; those of a head are one run."""

    @property
    def heads(self) -> int:
        return self.grains * self.heads_per_grain


@dataclass(frozen=True)
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

    @cached_property
    def grain_count(self) -> int:
        """How many equal shares every layer's heads fall into; 1 where a layer has a latent."""
        return gcd(*(heads for x in self.layers for heads in (x.key_heads, x.value_heads)))

    @cached_property
    def columns(self) -> tuple[tuple[Columns, Columns], ...]:
        """Keys and values of each layer."""
        grains, tokens = self.grain_count, self.block_tokens
        stride = self.block_elements // grains
        found: list[tuple[Columns, Columns]] = []
        first = 0
        for layer in self.layers:
            pair = []
            for heads, dim in (
                (layer.key_heads, layer.key_dim),
                (layer.value_heads, layer.value_dim),
            ):
                each = heads // grains
                pair.append(Columns(first, grains, each, stride, tokens * dim, dim))
                first += each * tokens * dim
            found.append((pair[0], pair[1]))
        return tuple(found)

    def part(self, rank: int, of: int) -> range:
        """The bytes of a block that worker `rank` of `of` reads and writes when they share heads.

        Where workers are more than grains, several have the same part. Raises ValueError for a
        split that would cut a grain.
        """
        shares = self._shares(of)
        if not 0 <= rank < of:
            raise ValueError(f"rank {rank} is not one of {of}")
        size = self.block_bytes // shares
        share = rank * shares // of
        return range(share * size, (share + 1) * size)

    def split(self, of: int) -> "BlockLayout":
        """What each of `of` workers lays out: its blocks are `part` of this one's.

        Raises ValueError as `part` does.
        """
        shares = self._shares(of)
        layers = tuple(
            LayerLayout(x.key_heads // shares, x.key_dim, x.value_heads // shares, x.value_dim)
            for x in self.layers
        )
        return BlockLayout(layers, self.block_tokens, self.dtype)

    def describe(self) -> str:
        """Text for the namespace: equal text means interchangeable bytes."""
        runs: list[tuple[LayerLayout, int]] = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer:
                runs[-1] = (layer, runs[-1][1] + 1)
            else:
                runs.append((layer, 1))
        return f"grains-{self.grain_count};" + ";".join(
            f"{count}*k{x.key_heads}x{x.key_dim}v{x.value_heads}x{x.value_dim}" for x, count in runs
        )

    def _shares(self, of: int) -> int:
        """Into how many different parts `of` workers cut a block."""
        if of < 1 or (self.grain_count % of and of % self.grain_count):
            raise ValueError(
                f"{of} workers cannot share {self.grain_count} grains of heads: one number must "
                "divide the other"
            )
        return min(of, self.grain_count)


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
