"""Attention honours what a model asks of it, or refuses: nothing is left out without a word."""

from typing import Any

import pytest
import torch

from worker.attention import CURRENT_STEP, AttentionStep, Segment, paged_attention
from worker.errors import ArchitectureRefusedError

TENSOR = torch.zeros(1)


def attend(**asked: Any) -> torch.Tensor:
    place = torch.zeros(3, dtype=torch.long)
    token = CURRENT_STEP.set(AttentionStep((Segment(0, 3, 0, 3),), place, place, None))
    try:
        states = torch.ones(1, 2, 3, 4)
        asked = {"attention_mask": None, **asked}
        return paged_attention(torch.nn.Module(), states, states, states, **asked)[0]
    finally:
        CURRENT_STEP.reset(token)


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
