"""Attention by torch's own kernel for sequences of many lengths: one call for a whole step.

The keys that the step's spans see are gathered from the pages into one run, without holes: span
after span, each from its window's first token to its last. What the kernel has no words for (a
softcap, sinks) or no code for (single precision, values wider than keys) is left to
`GatheringBackend`. Whether a kernel does what it should is found by trying it (`varlen_problem`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worker.attention.backend import Options, hidden_keys
from worker.attention.step import AttentionStep
from worker.attention.torch_backend import GatheringBackend
from worker.kv_pages import KvPages

__all__ = ["VarlenBackend", "VarlenKernel", "varlen_kernel", "varlen_problem"]

VarlenKernel = Callable[..., torch.Tensor]
"""As `torch.nn.attention.varlen.varlen_attn`: query `[queries, heads, dim]`, keys and values
`[keys, key heads, dim]`, where each span's begin in both, `[spans + 1]` int32, and the longest of
both; `scale`, `window_size` (tokens before, after; -1: all) and `enable_gqa`. The last query of a
span is at its last key."""

HALF = (torch.float16, torch.bfloat16)
DIM_MAX = 256
PROBE_TOLERANCE = 2e-2
"""Of values about 1, in bfloat16. A wrong mask differs by about 1."""


def varlen_kernel() -> VarlenKernel | None:
    """None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Any = varlen_attn
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Packed:
    """Where a step's keys are. Tensors on the device."""

    pages: torch.Tensor
    """Of each key, `[keys]`, as are the offsets."""
    offsets: torch.Tensor
    query_ends: torch.Tensor
    """With a 0 before them, `[spans + 1]` int32, as are the keys'."""
    key_ends: torch.Tensor
    queries_max: int
    keys_max: int


class VarlenBackend(GatheringBackend):
    """`kernel`: torch's, where it is not said."""

    name = "varlen"

    def __init__(self, kv: KvPages, kernel: VarlenKernel | None = None) -> None:
        super().__init__(kv)
        found = kernel or varlen_kernel()
        assert found is not None, "torch has no varlen_attn"
        self._kernel = found

    def attend(
        self,
        step: AttentionStep,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        if not self._takes(query, values, options):
            return super().attend(step, layer, query, keys, values, options)
        window = options.window
        packed = step.once(("packed", window), lambda: _pack(step, window))
        if step.fresh and window is None:
            k, v = keys.transpose(0, 1), values.transpose(0, 1)
        else:
            k = self._kv.keys[layer].read(packed.pages, packed.offsets)
            v = self._kv.values[layer].read(packed.pages, packed.offsets)
        return self._kernel(
            query.transpose(0, 1).contiguous(),
            k.contiguous(),
            v.contiguous(),
            packed.query_ends,
            packed.key_ends,
            packed.queries_max,
            packed.keys_max,
            scale=options.scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[0] != k.shape[1],
        )

    def _takes(self, query: torch.Tensor, values: torch.Tensor, options: Options) -> bool:
        plain = options.softcap is None and options.sinks is None
        dim = query.shape[-1]
        return plain and query.dtype in HALF and dim == values.shape[-1] <= DIM_MAX and dim % 8 == 0


def _pack(step: AttentionStep, window: int | None) -> _Packed:
    """What is made for each key is made on the device: only what there is of each span is sent."""
    spans = step.spans
    oldest = [0 if window is None else max(0, span.past - window + 1) for span in spans]
    counts = [span.context - first for span, first in zip(spans, oldest, strict=True)]
    queries = [span.query_count for span in spans]
    numbers = np.zeros((4, len(spans) + 1), np.int64)
    numbers[0, :-1], numbers[1, :-1] = oldest, counts
    numbers[2, 1:], numbers[3, 1:] = np.cumsum(queries), np.cumsum(counts)
    tables = np.zeros((len(spans), max(len(span.pages) for span in spans)), np.int64)
    for row, span in zip(tables, spans, strict=True):
        row[: len(span.pages)] = span.pages
    sent = step.tensor(np.concatenate([numbers.ravel(), tables.ravel()]))
    first, count, query_ends, key_ends = sent[: numbers.size].view(numbers.shape)
    table = sent[numbers.size :].view(tables.shape)
    total = sum(counts)
    span_of = torch.repeat_interleave(
        torch.arange(len(spans), device=step.device), count[:-1], output_size=total
    )
    at = torch.arange(total, device=step.device) - key_ends[span_of] + first[span_of]
    return _Packed(
        table[span_of, at // step.block_tokens],
        at % step.block_tokens,
        query_ends.int(),
        key_ends.int(),
        max(queries),
        max(counts),
    )


def varlen_problem(kernel: VarlenKernel | None, device: torch.device) -> str:
    """Why `kernel` cannot be used on `device`; empty where it does what it should."""
    if kernel is None:
        return "this torch has no varlen_attn"
    for window in (None, 3):
        try:
            off = _probe(kernel, device, window)
        except Exception as error:
            # Whatever it is, the way goes on without this kernel, and says why.
            return f"varlen_attn: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if not off <= PROBE_TOLERANCE:
            return f"varlen_attn gives something else, off by {off:.1e}"
    return ""


def _probe(kernel: VarlenKernel, device: torch.device, window: int | None) -> float:
    """How far it is from the formula, for two spans with more keys than queries."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, dim, scale = [3, 1], [5, 4], 16, 0.25
    q = torch.randn(sum(queries), 4, dim, generator=generator).to(device, torch.bfloat16)
    k, v = (
        torch.randn(sum(keys), 2, dim, generator=generator).to(device, torch.bfloat16)
        for _ in range(2)
    )
    ends = [
        torch.tensor([0, first, first + second], dtype=torch.int32, device=device)
        for first, second in (queries, keys)
    ]
    size = (-1 if window is None else window - 1, 0)
    out = kernel(
        q, k, v, *ends, max(queries), max(keys), scale=scale, window_size=size, enable_gqa=True
    )
    worst = 0.0
    row = begin = 0
    for query_count, key_count in zip(queries, keys, strict=True):
        part = q[row : row + query_count].float().transpose(0, 1)
        seen = slice(begin, begin + key_count)
        k_part, v_part = (x[seen].float().transpose(0, 1).repeat_interleave(2, 0) for x in (k, v))
        key_at = torch.arange(key_count, device=device)
        hidden = hidden_keys(key_at[key_count - query_count :, None], key_at[None], window)
        scores = (part @ k_part.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        right = (torch.softmax(scores, -1) @ v_part).transpose(0, 1)
        worst = max(worst, float((out[row : row + query_count].float() - right).abs().max()))
        row, begin = row + query_count, begin + key_count
    return worst
