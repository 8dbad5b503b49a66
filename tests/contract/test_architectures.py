"""Which architectures can be cached, and that they are computed right when they are.

Every supported one is made tiny with random weights, saved, loaded as a checkpoint and asked the
same prompts cold, and then with every block from pages, from a real cache service's host memory,
and from its SSD after it was started anew, each time beside a prompt of which only the beginning
is known. Greedy tokens and all logits are compared with the unmodified model's, and restored bytes
with those that were stored. One service serves them all. The others are refused at load, with the
reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtier.blocks import Tier
from kvtier.cli.processes import LocalCluster
from kvtier.keys import BlockHash
from tests.cache_cluster import cache_cluster
from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    EXPERTS,
    LATENT,
    LOGIT_TOLERANCE,
    VOCABULARY,
    WINDOW,
    Asked,
    ask,
    plain_logits,
    save_tiny,
    tiny_engine,
)
from worker.cache_client import CacheClient
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine
from worker.errors import ArchitectureRefusedError
from worker.landing import PageBytes
from worker.model_loader import LoadedModel, load_model

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
        "chunked attention.*how many tokens its cache says",
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


class Witness:
    """A worker's way to the real cache service, with the bytes of each block that went through."""

    def __init__(self, loaded: LoadedModel, address: str, stored: dict[BlockHash, bytes]) -> None:
        self._client = CacheClient(
            address,
            namespace_id=loaded.namespace.id,
            block_bytes=loaded.block_bytes,
            block_tokens=loaded.block_tokens,
            client_name="matrix",
        )
        self._stored = stored

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        timeout_seconds: float,
        hints: Any,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        # Without what computing costs: models this small would be computed anew, by speed of today.
        result = self._client.restore(request_id, chain, pages, timeout_seconds, hints)
        for block, page in zip(chain[: len(result.tiers)], pages, strict=False):
            assert page.tobytes() == self._stored[block]
        return result

    def store(
        self, request_id: str, chain: Sequence[BlockHash], pages: Sequence[PageBytes], hints: Any
    ) -> StoreResult:
        for block, page in zip(chain, pages, strict=True):
            self._stored.setdefault(block, page.tobytes())
        return self._client.store(request_id, chain, pages, hints)

    def connected(self) -> bool:
        return self._client.connected()

    def close(self) -> None:
        self._client.close()


@dataclass
class Case:
    """One architecture: the plain model, what it says, and what was stored of it."""

    kind: str
    directory: Path
    plain: Any
    loaded: LoadedModel
    stored: dict[BlockHash, bytes] = field(default_factory=dict)

    def expected(self, prompt: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens of the plain model, and its logits at all positions."""
        known = list(prompt)
        while True:
            logits = plain_logits(self.plain, known)
            if len(known) == len(prompt) + NEW_TOKENS:
                return known[len(prompt) :], logits
            known.append(int(logits[-1].argmax()))

    @cached_property
    def said(self) -> list[tuple[list[int], torch.Tensor]]:
        return [self.expected(prompt) for prompt in PROMPTS]

    def check(self, engine: Engine, newcomer: list[int] | None = None) -> list[Asked]:
        """Asks everything of `engine` at once; what it says must be what the plain model says."""
        prompts = [*PROMPTS, *([newcomer] if newcomer else [])]
        said = [*self.said, *([self.expected(newcomer)] if newcomer else [])]
        seen: list[torch.Tensor] = []
        hook = self.loaded.model.register_forward_hook(
            lambda model, args, output: seen.append(output.logits[0].float())
        )
        try:
            asked = ask(engine, prompts, NEW_TOKENS)
        finally:
            hook.remove()
        assert [one.tokens for one in asked] == [tokens for tokens, _ in said]
        rows, right = torch.cat(seen), torch.cat([logits for _, logits in said])
        # Whatever row the model was asked for is one of the plain model's.
        apart = torch.stack([(right - row).abs().amax(1).min() for row in rows])
        assert float(apart.max()) < LOGIT_TOLERANCE * float(right.abs().max())
        return asked


class Matrix:
    """All architectures over one cache service, which is started anew once."""

    def __init__(self, directory: Path, cluster: LocalCluster) -> None:
        self._directory = directory
        self._cluster = cluster
        self._service = cluster.start_cache("127.0.0.1:0")
        self._cases: dict[str, Case] = {}
        self.restarted = False

    def filled(self, kind: str) -> Case:
        """`kind`, with its prompts computed cold and asked from pages and from host memory."""
        if kind not in self._cases:
            assert not self.restarted
            directory = self._directory / kind
            plain = save_tiny(directory, kind, SUPPORTED[kind])
            case = Case(kind, directory, plain, load_model(directory, block_tokens=BLOCK_TOKENS))
            self._fill(case)
            self._cases[kind] = case
        return self._cases[kind]

    def restart(self, kinds: Sequence[str]) -> None:
        """Fills the service with `kinds` and starts it anew. Once."""
        for kind in kinds:
            self.filled(kind)
        self._service.stop()
        self._service = self._cluster.start_cache("127.0.0.1:0")
        self.restarted = True

    def ask_warm(self, case: Case, tier: Tier, newcomer: list[int]) -> None:
        """Asks a worker that has nothing but the service's `tier`."""
        cache = Witness(case.loaded, self._service.address, case.stored)
        engine = tiny_engine(case.loaded, cache)
        check_hits(case.check(engine, newcomer), tier)
        engine.stop()
        cache.close()

    def _fill(self, case: Case) -> None:
        cache = Witness(case.loaded, self._service.address, case.stored)
        engine = tiny_engine(case.loaded, cache)
        cold = case.check(engine)
        assert {tier for one in cold for tier in one.hits} <= {Tier.GPU}, "nothing was stored yet"
        check_hits(case.check(engine, NEWCOMERS[Tier.GPU]), Tier.GPU)
        engine.stop()
        cache.close()
        self.ask_warm(case, Tier.HOST, NEWCOMERS[Tier.HOST])


def check_hits(asked: Sequence[Asked], tier: Tier) -> None:
    """All that could be hit was; each block came from `tier` once and was in pages from then on."""
    hit = [sum(one.hits.values()) for one in asked]
    assert hit == [*((len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS for prompt in PROMPTS), 32]
    from_tier = sum(one.hits.get(tier, 0) for one in asked)
    assert {each for one in asked for each in one.hits} <= {Tier.GPU, tier}
    assert from_tier == (sum(hit) if tier is Tier.GPU else DISTINCT_TOKENS)


def drawn() -> tuple[list[list[int]], dict[Tier, list[int]]]:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        numbers: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
        return numbers

    shared = draw(66)
    newcomers = {tier: shared[:40] + draw(28) for tier in (Tier.GPU, Tier.HOST, Tier.SSD)}
    return [shared + draw(5), shared + draw(27), draw(45)], newcomers


PROMPTS, NEWCOMERS = drawn()
"""Asked every time; one more for each tier, of which two blocks are known and the rest is not."""
DISTINCT_TOKENS = (4 + 1 + 2) * BLOCK_TOKENS
"""In the whole blocks of `PROMPTS`, each counted once."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with cache_cluster() as cluster:
        yield Matrix(tmp_path_factory.mktemp("models"), cluster)


@pytest.fixture(scope="module")
def restarted(matrix: Matrix, request: pytest.FixtureRequest) -> Matrix:
    matrix.restart(
        [
            item.callspec.params["kind"]
            for item in request.session.items
            if getattr(item, "originalname", "") == test_from_the_ssd_after_a_restart.__name__
            and isinstance(item, pytest.Function)
        ]
    )
    return matrix


@pytest.mark.parametrize("kind", SUPPORTED)
def test_cold_from_pages_and_from_host_memory_it_is_the_plain_model(
    kind: str, matrix: Matrix
) -> None:
    matrix.filled(kind)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_from_the_ssd_after_a_restart(kind: str, restarted: Matrix) -> None:
    restarted.ask_warm(restarted.filled(kind), Tier.SSD, NEWCOMERS[Tier.SSD])


@pytest.mark.parametrize("kind", REFUSED)
def test_architecture_that_blocks_cannot_name_is_refused_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    settings, reason = REFUSED[kind]
    save_tiny(tmp_path / kind, kind, settings)
    with pytest.raises(ArchitectureRefusedError, match=reason):
        load_model(tmp_path / kind, block_tokens=BLOCK_TOKENS)
