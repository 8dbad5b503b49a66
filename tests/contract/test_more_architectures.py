"""Families beside the matrix of `test_architectures.py`: computed right, or refused at load.

Tiny and random, each is asked in pieces of unequal length and in one row with another request.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    LATENT,
    LOGIT_TOLERANCE,
    WINDOW,
    paged_logits,
    plain_logits,
    save_tiny,
)
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages, PageId
from worker.model_loader import load_model
from worker.model_runner import ModelRunner, Span

DIM = {"head_dim": 16}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
COMPUTED: dict[str, dict[str, Any]] = {
    "apertus": COMMON,
    "cohere": COMMON,
    "cohere2": {**COMMON, **WINDOW, **DIM},
    "ernie4_5": COMMON,
    "exaone4": {**COMMON, **WINDOW, **DIM},
    "gemma": {**COMMON, **DIM},
    "glm4_moe": {
        **COMMON,
        **DIM,
        **MOE,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "glm4_moe_lite": LATENT,
    "granite": COMMON,
    "granite_swa": {**COMMON, **WINDOW},
    "lfm2": {**COMMON, "layer_types": ["full_attention"] * 3},
    "mimo_v2_flash": {
        **COMMON,
        **WINDOW,
        **DIM,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "minicpm3": {
        **COMMON,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "minimax_m2": {**COMMON, **DIM, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {**COMMON, **WINDOW, **DIM},
    "modernbert-decoder": {**COMMON, "local_attention": 24},
    "nanochat": {**COMMON, "num_key_value_heads": 4},
    "nemotron": COMMON,
    "olmo3": {**COMMON, **WINDOW},
    "olmoe": {**COMMON, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "vocab_size": COMMON["vocab_size"],
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "ffn_dim": 128,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 64,
    },
    "phi": COMMON,
    "phimoe": {**COMMON, "num_local_experts": 4},
    "qwen2_moe": {
        **COMMON,
        **WINDOW,
        **MOE,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "max_window_layers": 0,
    },
    "smollm3": COMMON,
    "stablelm": COMMON,
    "starcoder2": {**COMMON, **WINDOW},
}
# The last two layers attend to what earlier ones cache.
SHARED: dict[str, Any] = {
    **COMMON,
    **WINDOW,
    **DIM,
    "num_hidden_layers": 5,
    "num_kv_shared_layers": 2,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
    ],
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # A mask of its own that is the causal one until `keep_window_size` tokens.
    "doge": ({**COMMON, "keep_window_size": 200}, "mask of its own"),
    "falcon": ({**COMMON, "alibi": False}, "0 of 3 layers"),
    "gpt_neo": (
        {
            **COMMON,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
        },
        "0 of 3 layers",
    ),
    "diffllama": (COMMON, "of 3 layers used"),
    "gemma3n_text": (
        {
            **SHARED,
            "vocab_size_per_layer_input": 512,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 5,
        },
        "layers 3, 4 of 5 do not use",
    ),
    "gemma4_text": (
        {**SHARED, "vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8},
        "layers 3, 4 of 5 do not use",
    ),
    "glm_moe_dsa": (
        {**LATENT, "index_topk": 16, "index_n_heads": 2, "index_head_dim": 32},
        "an index",
    ),
    "deepseek_v32": (
        {**LATENT, "index_topk": 16, "index_n_heads": 2, "index_head_dim": 32},
        "deepseek_v32 has layers of kind",
    ),
    "jamba": (COMMON, "recurrent"),
    "bamba": (COMMON, "recurrent"),
    "nemotron_h": (COMMON, "recurrent"),
    "qwen3_5_text": (
        {
            **COMMON,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "recurrent",
    ),
    "mamba2": (
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 1,
        },
        "recurrent",
    ),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_logits_in_pieces_and_beside_another_are_the_plain_models(
    kind: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    plain = save_tiny(tmp_path, kind, COMPUTED[kind])
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    generator = torch.Generator().manual_seed(3)
    one = torch.randint(3, 500, (120,), generator=generator).tolist()
    two = torch.randint(3, 500, (40,), generator=generator).tolist()
    expected = plain_logits(plain, one)
    pieces = (paged_logits(loaded, one) - expected).abs().max() / expected.abs().max()
    assert float(pieces) < LOGIT_TOLERANCE

    runner = ModelRunner(loaded.model, KvPages(loaded.layout, 12, torch.device("cpu")))
    pages = [PageId(page) for page in range(8)]
    runner.run([Span(one[:112], 0, pages, 1)])
    late = Span(one[112:], 112, pages, 8)
    both = runner.run([late, Span(two, 0, [PageId(page) for page in (9, 10, 11)], 40)])
    wanted = torch.cat([expected[112:], plain_logits(plain, two)])
    assert float((both - wanted).abs().max() / wanted.abs().max()) < LOGIT_TOLERANCE


@pytest.mark.parametrize("kind", REFUSED)
def test_what_pages_cannot_honour_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings, reason = REFUSED[kind]
    save_tiny(tmp_path, kind, settings)
    with pytest.raises(ArchitectureRefusedError, match=reason):
        load_model(tmp_path, block_tokens=BLOCK_TOKENS)
