"""What the proof at load finds, far past the tokens that it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import COMMON, WINDOW, save_tiny
from worker.errors import SelfTestFailedError
from worker.layout import probe_layout
from worker.model_loader import load_model
from worker.self_test import TOLERANCES, logit_difference, run_self_test

BLOCK_TOKENS = 8
CONTEXT = 512
LLAMA4: dict[str, Any] = {
    **COMMON,
    "head_dim": 16,
    "num_local_experts": 4,
    "intermediate_size_mlp": 128,
}


def made(kind: str, settings: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    return model


def proved(model: Any, context_tokens: int = CONTEXT) -> None:
    run_self_test(model, probe_layout(model, BLOCK_TOKENS), context_tokens)


def windowed() -> Any:
    settings = {**COMMON, "sliding_window": 400, "use_sliding_window": True, "max_window_layers": 1}
    return made("qwen2", settings)


def test_model_with_a_window_past_what_is_computed_passes() -> None:
    proved(windowed())


@pytest.mark.parametrize("told", [None, 399, 401])
def test_window_of_which_attention_is_told_something_else_is_found(told: int | None) -> None:
    model = windowed()
    assert model.model.layers[2].self_attn.sliding_window == 400
    model.model.layers[2].self_attn.sliding_window = told
    with pytest.raises(SelfTestFailedError, match="layer 2"):
        proved(model)


@pytest.mark.parametrize("chunk", [8, 300])
def test_chunks_are_found_whether_or_not_one_ends_in_what_is_computed(chunk: int) -> None:
    with pytest.raises(SelfTestFailedError):
        proved(made("llama4_text", {**LLAMA4, "attention_chunk_size": chunk}))


def test_frequencies_that_follow_the_longest_request_are_found() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.2] * 8,
        "original_max_position_embeddings": 128,
    }
    settings = {**COMMON, "original_max_position_embeddings": 128, "rope_parameters": rope}
    proved(made("phi3", settings), context_tokens=128)
    with pytest.raises(SelfTestFailedError, match="request beside it"):
        proved(made("phi3", settings))


def test_what_a_model_counts_from_its_cache_and_not_from_positions_is_found(
    tmp_path: Path,
) -> None:
    settings = {
        **LLAMA4,
        "layer_types": ["full_attention"] * 3,
        "no_rope_layers": [0, 0, 0],
        "floor_scale": 256,
    }
    save_tiny(tmp_path, "llama4_text", settings)
    with pytest.raises(SelfTestFailedError, match="how much is cached"):
        load_model(tmp_path, block_tokens=BLOCK_TOKENS)


EXPERTS = {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "dtype", "one_row"),
    [
        ("llama", COMMON, torch.bfloat16, 0.5),
        ("mixtral", EXPERTS, torch.float32, 0.5),
        # A row of other experts is no proof against the cache; a row that is no number is.
        ("mixtral", EXPERTS, torch.bfloat16, 0.01),
    ],
)
def test_one_row_that_is_off_counts_but_for_experts_in_half_precision(
    kind: str, settings: dict[str, Any], dtype: torch.dtype, one_row: float
) -> None:
    model = made(kind, settings)
    right = torch.zeros(5, 8)
    right[0, 0] = 2.0
    got = right + 0.02
    got[1, 3] += 0.98
    assert logit_difference(model, dtype, got, right) == pytest.approx(one_row)
    got[:3] = right[:3] + 1.0
    assert logit_difference(model, dtype, got, right) == pytest.approx(0.5)
    got[1, 3] = float("nan")
    assert not logit_difference(model, dtype, got, right) <= TOLERANCES[dtype]


@pytest.mark.parametrize("context", [1, 7, 24, 1 << 18])
def test_what_is_computed_is_bounded_whatever_the_context(context: int) -> None:
    model = made("mistral", {**COMMON, **WINDOW, "max_position_embeddings": context})
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    layout = probe_layout(model, BLOCK_TOKENS)
    model.register_forward_pre_hook(count, with_kwargs=True)
    run_self_test(model, layout, context)
    assert 0 < tokens <= 8 * BLOCK_TOKENS + 4 * 16 + 4
