"""Attention honours what a model asks of it, or refuses: nothing is left out without a word."""

from typing import Any

import pytest
import torch

from worker.attention.choose import attention_choices
from worker.attention.interface import FORWARD, Forward, PagedCache, paged_attention
from worker.attention.step import AttentionStep
from worker.attention.survey import LayerUse
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages
from worker.layout import BlockLayout, LayerLayout

TENSOR = torch.zeros(1)
CPU = torch.device("cpu")
MODULE = torch.nn.Module()


def attend(**asked: Any) -> torch.Tensor:
    layout = BlockLayout((LayerLayout(2, 4, 2, 4),), 4, torch.float32)
    kv = KvPages(layout, 1, CPU)
    cache = PagedCache(kv, {0: LayerUse(True, MODULE)}, attention_choices(CPU)[0].make(kv))
    token = FORWARD.set(Forward(AttentionStep.of([(0, 3, [0])], 4, CPU), cache))
    try:
        states = torch.ones(1, 2, 3, 4)
        asked = {"attention_mask": None, **asked}
        keys, values = cache.update(states, states, 0)
        return paged_attention(MODULE, states, keys, values, **asked)[0]
    finally:
        FORWARD.reset(token)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "mask of its own"),
        ({"position_bias": TENSOR}, "position_bias"),
        ({"indices": TENSOR}, "indices"),
        ({"block_indices": TENSOR}, "block_indices"),
        ({"cu_seq_lens_q": TENSOR}, "cu_seq_lens_q"),
        ({"head_mask": TENSOR, "alibi": TENSOR}, "alibi, head_mask"),
        ({"is_causal": False}, "both ways"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_would_change_the_result_is_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(ArchitectureRefusedError, match=named):
        attend(**asked)


def test_what_changes_nothing_is_taken() -> None:
    plain = attend()
    asked = {"position_ids": TENSOR, "use_cache": True, "output_router_logits": False}
    assert torch.equal(attend(**asked, indices=None, is_causal=True, dropout=0.0), plain)
