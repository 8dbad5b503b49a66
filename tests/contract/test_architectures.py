"""Which architectures can be cached, and that they are computed right when they are.

Every supported one is made tiny with random weights, saved, loaded as a checkpoint and asked the
same prompts cold and with every block restored from bytes; greedy tokens and logits are compared
with the unmodified model's. The others are refused at load, with the reason.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from worker.cache_port import PageBytes, RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.errors import ArchitectureRefusedError
from worker.kv_pages import KvPages, PageId
from worker.model_loader import LoadedModel, load_model
from worker.model_runner import ModelRunner, Span
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent

BLOCK_TOKENS = 16
VOCABULARY = 512
NEW_TOKENS = 6
LOGIT_TOLERANCE = 1e-4
"""Share of the largest logit, float32."""

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW: dict[str, Any] = {"sliding_window": 24}
LATENT: dict[str, Any] = {
    **COMMON,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
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


class BytesCache:
    """A cache service that keeps bytes and nothing else."""

    def __init__(self) -> None:
        self.blocks: dict[BlockHash, bytes] = {}

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        timeout_seconds: float,
        hints: Any = None,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        for count, (block, page) in enumerate(zip(chain, pages, strict=True)):
            if block not in self.blocks:
                return RestoreResult((Tier.HOST,) * count, MissReason.NEVER_STORED)
            page[:] = memoryview(self.blocks[block])
        return RestoreResult((Tier.HOST,) * len(chain), MissReason.NONE)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        hints: Any = None,
    ) -> StoreResult:
        for block, page in zip(chain, pages, strict=True):
            self.blocks.setdefault(block, page.tobytes())
        return StoreResult(len(chain), 0, 0)

    def connected(self) -> bool:
        return True

    def close(self) -> Any:
        return None


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        numbers: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
        return numbers

    shared = draw(66)
    return [shared + draw(5), shared + draw(27), draw(45)]


def save_tiny(directory: Path, kind: str, settings: dict[str, Any]) -> Any:
    """Saves a random model with logits far enough apart, and returns it as the reference."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    model: Any = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    model.save_pretrained(directory)
    return model.eval()


def plain_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


def run_engine(loaded: LoadedModel, cache: BytesCache) -> list[tuple[list[int], int]]:
    """Generated tokens and hit tokens of each prompt, computed together."""
    settings = EngineSettings(page_count=48, step_tokens=32)
    engine = Engine(loaded, settings, cache, load_threads=0)
    events: list[list[Any]] = []
    for number, prompt in enumerate(prompts()):
        events.append([])
        request = EngineRequest(RequestId(f"r{number}"), tuple(prompt), NEW_TOKENS, PUBLIC_SCOPE)
        engine.submit(request, events[-1].append)
    while engine.step():
        engine.check_integrity()
    engine.stop()
    outcomes = []
    for seen in events:
        end = seen[-1]
        assert isinstance(end, RequestEnded), end
        assert not end.problem
        tokens = [e.token_id for e in seen if isinstance(e, TokenEvent)]
        outcomes.append((tokens, end.usage.hit_tokens))
    return outcomes


def paged_logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Logits of all positions, computed in pieces of unequal length."""
    count = -(-len(tokens) // BLOCK_TOKENS)
    kv = KvPages(loaded.layout, count, torch.device("cpu"))
    runner = ModelRunner(loaded.model, kv)
    pages = [PageId(page) for page in reversed(range(count))]
    cuts = [0, 32, 33, 48, len(tokens)]
    parts = [
        runner.run([Span(tokens[start:end], start, pages, end - start)])
        for start, end in pairwise(cuts)
        if end > start
    ]
    return torch.cat(parts)


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
    cold = run_engine(loaded, cache)
    assert [tokens for tokens, _ in cold] == expected
    cache.blocks = {block: bytes(bytearray(raw)) for block, raw in cache.blocks.items()}
    warm = run_engine(loaded, cache)
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
