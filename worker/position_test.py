"""Proof at load that a token's KV is its prefix's alone, anywhere in the context.

Four forwards of a few tokens are watched instead of one of a whole context being computed:

    alone     the first positions
    beside    the same, but for the last token, which is at the context's end: whatever changes for
              the others follows the longest request in the row
    counted   the context's last positions, with all before them said to be cached
    paged     the same, with nothing said to be cached, as pages do: whatever changes is taken from
              the cache's length and not from positions

and the masks of `counted` must show each layer the tokens that pages show it: with the window that
the layer tells attention, to the token. Pure but for compute; runs on the starting thread.
"""

from collections.abc import Sequence
from typing import Any

import torch

from worker.attention.backend import hidden_keys
from worker.attention.witness import Handed, watch
from worker.errors import SelfTestFailedError

__all__ = ["ROW_COUNT", "check_positions"]

ROW_COUNT = 16
FAR_TOKENS_MAX = 1 << 20
"""A mask of 16 rows is then 64 MiB. Of a longer context the first million tokens are proved."""


def check_positions(model: Any, context_tokens: int, tolerance: float) -> None:
    """Raises SelfTestFailedError, ArchitectureRefusedError. `tolerance` is a share of the largest
    value of a tensor.
    """
    rows = min(ROW_COUNT, context_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary, (rows,), generator=generator).tolist()
    last = min(context_tokens, FAR_TOKENS_MAX) - 1
    near, far = list(range(rows)), list(range(last - rows + 1, last + 1))

    alone = watch(model, tokens, near, past=0)
    beside = watch(model, tokens, [*near[:-1], last], past=0)
    _compare(alone, beside, rows - 1, tolerance, f"a request beside it reaches position {last}")
    counted = watch(model, tokens, far, past=far[0])
    paged = watch(model, tokens, far, past=0)
    _compare(counted, paged, rows, tolerance, f"how much is cached says {far[0]} or nothing")
    for layer, handed in enumerate(counted):
        _check_mask(layer, handed, far)


def _compare(
    one: Sequence[Handed], other: Sequence[Handed], rows: int, tolerance: float, why: str
) -> None:
    for layer, (left, right) in enumerate(zip(one, other, strict=True)):
        for name in ("query", "key", "value"):
            a, b = getattr(left, name)[:, :, :rows].float(), getattr(right, name)[:, :, :rows]
            if a.numel() == 0:
                continue
            difference = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-6)
            # Written so that NaN fails too.
            if not difference <= tolerance:
                raise SelfTestFailedError(
                    f"a token's {name} in layer {layer} changes by {difference:.1e} of the largest "
                    f"when {why}: its KV is not its prefix's alone"
                )


def _check_mask(layer: int, handed: Handed, positions: Sequence[int]) -> None:
    mask = handed.mask
    keys = positions[-1] + 1
    if mask is not None and mask.shape[-2:] == (len(positions), keys):
        query_at = torch.tensor(positions, device=mask.device)[:, None]
        key_at = torch.arange(keys, device=mask.device)[None]
        hidden = hidden_keys(query_at, key_at, handed.window).expand_as(mask)
        shut = mask <= torch.finfo(mask.dtype).min
        if torch.equal(shut, hidden) and bool((mask[~hidden] == 0).all()):
            return
    told = "no window" if handed.window is None else f"a window of {handed.window} tokens"
    raise SelfTestFailedError(
        f"layer {layer} tells attention of {told}, and at position {positions[-1]} the plain model "
        "lets it see other tokens than that: pages would show it the wrong ones"
    )
