"""Attention of one span over keys that lie in one run, by torch alone.

    with sums    the processor's fused kernel, which also gives log-sum-exp: a past is attended to
                 without a mask and merged with the new tokens, a sink only scales the outcome
    fused        scaled_dot_product_attention: other devices, values wider than keys
    explicit     scores written out, in slices of queries: softcap, and sinks without sums

Pure; any thread.
"""

import torch
import torch.nn.functional as F

from worker.attention.backend import Options, hidden_keys
from worker.attention.step import AttentionStep

__all__ = ["attend_span", "flash_with_sums", "gives_sums"]

EXPLICIT_SCORES_MAX = 8 * 1024 * 1024
"""Scores written out at a time: 32 MiB."""

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def gives_sums(query: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `flash_with_sums` can be used for them."""
    return _FLASH is not None and query.device.type == "cpu" and query.shape[-1] == values.shape[-1]


def flash_with_sums(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All `[batch, heads, tokens, dim]`. The outcome, and for each query the logarithm of the sum
    over its keys of exp(score), float32 `[batch, heads, tokens]`."""
    assert _FLASH is not None
    out, sums = _FLASH(query, keys, values, 0.0, causal, attn_mask=mask, scale=scale)
    return out, sums


def attend_span(
    step: AttentionStep,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """`query` `[heads, queries, dim]`, the last at the last of `keys`, `[key heads, keys, dim]`.

    Returns `[heads, queries, value dim]`.
    """
    window = options.window
    if window is not None and keys.shape[1] <= window:
        window = None
    sums = gives_sums(query, values)
    if options.softcap is not None or (options.sinks is not None and not sums):
        return _explicit(query, keys, values, window, options)
    if not sums:
        return _fused(step, query, keys, values, window, options.scale)
    out, total = _with_sums(step, query[None], keys[None], values[None], window, options.scale)
    if options.sinks is not None:
        share = torch.sigmoid(total - options.sinks.float().view(1, -1, 1))
        out = out * share[..., None].to(out.dtype)
    return out[0]


def _with_sums(
    step: AttentionStep,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    queries, keys = q.shape[2], k.shape[2]
    past = keys - queries
    if window is not None:
        mask = _mask(step, queries, keys, window, q.dtype)
        return flash_with_sums(q, k, v, scale, mask=mask)
    if queries == 1:
        return _to_past(q, k, v, scale)
    if not past:
        return flash_with_sums(q, k, v, scale, causal=True)
    old, old_sums = _to_past(q, k[:, :, :past], v[:, :, :past], scale)
    new, new_sums = flash_with_sums(q, k[:, :, past:], v[:, :, past:], scale, causal=True)
    share = torch.sigmoid(old_sums - new_sums)
    out = torch.lerp(new, old, share[..., None].to(new.dtype))
    return out, torch.logaddexp(old_sums, new_sums)


def _to_past(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query sees every key, so the queries of a key head are one long row of them."""
    _, heads, queries, dim = q.shape
    rows = q.reshape(1, k.shape[1], -1, dim)
    out, sums = flash_with_sums(rows, k, v, scale)
    return out.reshape(1, heads, queries, dim), sums.reshape(1, heads, queries)


def _fused(
    step: AttentionStep,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    queries, keys = q.shape[1], k.shape[1]
    causal = 1 < queries == keys and window is None
    mask = None
    if queries > 1 and not causal:
        mask = _mask(step, queries, keys, window, q.dtype)
    return F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )[0]


def _mask(
    step: AttentionStep, queries: int, keys: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Additive `[queries, keys]`: the last query is at the last key."""

    def make() -> torch.Tensor:
        query_at = torch.arange(keys - queries, keys, device=step.device)[:, None]
        hidden = hidden_keys(query_at, torch.arange(keys, device=step.device)[None], window)
        made = torch.zeros(queries, keys, dtype=dtype, device=step.device)
        return made.masked_fill_(hidden, float("-inf"))

    return step.once(("mask", queries, keys, window, dtype), make)


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, options: Options
) -> torch.Tensor:
    heads, queries, dim = q.shape
    key_heads, keys, _ = k.shape
    out = q.new_empty(heads, queries, v.shape[-1])
    rows = max(1, EXPLICIT_SCORES_MAX // (heads * keys))
    key_at = torch.arange(keys, device=q.device)
    for first in range(0, queries, rows):
        part = q[:, first : first + rows]
        count = part.shape[1]
        grouped = part.reshape(key_heads, -1, dim)
        scores = (grouped @ k.transpose(1, 2)).float().view(heads, count, keys) * options.scale
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        query_at = torch.arange(keys - queries + first, keys - queries + first + count)
        hidden = hidden_keys(query_at.to(q.device)[:, None], key_at, window)
        scores.masked_fill_(hidden, float("-inf"))
        weights = _softmax(scores, options.sinks).to(v.dtype).view(key_heads, -1, keys)
        out[:, first : first + rows] = (weights @ v).view(heads, count, -1)
    return out


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
