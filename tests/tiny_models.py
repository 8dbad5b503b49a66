"""Tiny random models of many kinds as checkpoints, and what a test compares them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.kv_pages import KvPages, PageId
from worker.landing import PageBytes
from worker.model_loader import LoadedModel
from worker.model_runner import ModelRunner, Span
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent

BLOCK_TOKENS = 16
VOCABULARY = 512
LOGIT_TOLERANCE = 1e-4
"""Share of the largest logit, float32."""

COMMON: dict[str, Any] = {
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


@dataclass(frozen=True)
class Asked:
    """What an engine said to one prompt."""

    tokens: list[int]
    hits: dict[Tier, int]
    """Hit tokens by tier."""


def tiny_engine(loaded: LoadedModel, cache: Any) -> Engine:
    """Steps by hand; calls `cache` on the stepping thread."""
    settings = EngineSettings(page_count=48, step_tokens=32, load_timeout_seconds=60.0)
    return Engine(loaded, settings, cache, load_threads=0)


def ask(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> list[Asked]:
    """Computes `prompts` together, greedily, to their ends."""
    events: list[list[Any]] = []
    for number, prompt in enumerate(prompts):
        events.append([])
        request = EngineRequest(RequestId(f"r{number}"), tuple(prompt), new_tokens, PUBLIC_SCOPE)
        engine.submit(request, events[-1].append)
    while engine.step():
        engine.check_integrity()
    asked = []
    for seen in events:
        end = seen[-1]
        assert isinstance(end, RequestEnded), end
        assert not end.problem
        tokens = [e.token_id for e in seen if isinstance(e, TokenEvent)]
        asked.append(Asked(tokens, dict(end.usage.hit_tokens_by_tier)))
    return asked


def run_engine(
    loaded: LoadedModel, cache: Any, prompts: Sequence[list[int]], new_tokens: int
) -> list[tuple[list[int], int]]:
    """Generated tokens and hit tokens of each prompt, computed together by an engine of its own."""
    engine = tiny_engine(loaded, cache)
    asked = ask(engine, prompts, new_tokens)
    engine.stop()
    return [(one.tokens, sum(one.hits.values())) for one in asked]
