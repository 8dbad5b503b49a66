"""Which architectures can be cached, and that they are computed right when they are.

Every supported one is made tiny with random weights, saved, loaded as a checkpoint and asked the
same prompts cold and with every block restored from bytes; greedy tokens and logits are compared
with the unmodified model's. The others are refused at load, with the reason.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    EXPERTS,
    LATENT,
    LOGIT_TOLERANCE,
    VOCABULARY,
    WINDOW,
    BytesCache,
    paged_logits,
    plain_logits,
    run_engine,
    save_tiny,
)
from worker.errors import ArchitectureRefusedError
from worker.model_loader import load_model

NEW_TOKENS = 6

SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 32},
    "mistral": {**COMMON, **WINDOW, "head_dim": 16},
    "gemma2": {**COMMON, **WINDOW, "head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        **COMMON,
        **WINDOW,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 7,
    },
    "mixtral": {**COMMON, **EXPERTS},
    "qwen3_moe": {
        **COMMON,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
    "gpt_oss": {**COMMON, **WINDOW, **EXPERTS, "head_dim": 32},
    "phi3": COMMON,
    "glm4": {**COMMON, "head_dim": 16},
    "olmo2": COMMON,
    "deepseek_v3": LATENT,
    "deepseek_v2": LATENT,
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "llama4_text": (
        {
            **COMMON,
            "head_dim": 16,
            "num_local_experts": 4,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 64,
        },
        "chunked attention",
    ),
    "qwen3_next": (
        {
            **COMMON,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "recurrent",
    ),
}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        numbers: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
        return numbers

    shared = draw(66)
    return [shared + draw(5), shared + draw(27), draw(45)]


@pytest.mark.parametrize("kind", SUPPORTED)
def test_paged_tokens_and_logits_are_those_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain = save_tiny(tmp_path / kind, kind, SUPPORTED[kind])
    loaded = load_model(tmp_path / kind, block_tokens=BLOCK_TOKENS)
    expected = []
    for prompt in prompts():
        tokens = list(prompt)
        for _ in range(NEW_TOKENS):
            tokens.append(int(plain_logits(plain, tokens)[-1].argmax()))
        expected.append(tokens[len(prompt) :])

    cache = BytesCache()
    cold = run_engine(loaded, cache, prompts(), NEW_TOKENS)
    assert [tokens for tokens, _ in cold] == expected
    cache.blocks = {block: bytes(bytearray(raw)) for block, raw in cache.blocks.items()}
    warm = run_engine(loaded, cache, prompts(), NEW_TOKENS)
    assert [tokens for tokens, _ in warm] == expected
    reusable = [(len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS for prompt in prompts()]
    assert [hit for _, hit in warm] == reusable

    whole = prompts()[1] + expected[1]
    reference = plain_logits(plain, whole)
    difference = (paged_logits(loaded, whole) - reference).abs().max() / reference.abs().max()
    assert float(difference) < LOGIT_TOLERANCE


@pytest.mark.parametrize("kind", REFUSED)
def test_architecture_that_blocks_cannot_name_is_refused_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    settings, reason = REFUSED[kind]
    save_tiny(tmp_path / kind, kind, settings)
    with pytest.raises(ArchitectureRefusedError, match=reason):
        load_model(tmp_path / kind, block_tokens=BLOCK_TOKENS)
