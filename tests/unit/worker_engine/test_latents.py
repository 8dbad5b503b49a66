"""A context of latents is not expanded at each step, and what is computed is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    LATENT,
    LOGIT_TOLERANCE,
    plain_logits,
    save_tiny,
)
from worker.attention.latents import absorbable
from worker.attention.survey import survey
from worker.kv_pages import KvPages, PageId
from worker.model_loader import LoadedModel, load_model
from worker.model_runner import ModelRunner, Span

KINDS = ["deepseek_v3", "deepseek_v2", "glm4_moe_lite"]
CONTEXT = 60


def loaded(directory: Path, kind: str = "deepseek_v3") -> tuple[Any, LoadedModel]:
    torch.set_num_threads(1)
    plain = save_tiny(directory, kind, LATENT)
    return plain, load_model(directory, block_tokens=BLOCK_TOKENS)


class Asked:
    """A runner on a pool, and how many tokens each call expanded."""

    def __init__(self, ready: LoadedModel) -> None:
        self._runner = ModelRunner(
            ready.model, KvPages(ready.layout, 8, torch.device("cpu")), ready.attention
        )
        self._pages = [PageId(page) for page in (5, 1, 4, 0)]
        self.expanded: list[int] = []
        for module in ready.model.modules():
            if hasattr(module, "expand_kv"):
                module.kv_b_proj.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: tuple[torch.Tensor]) -> None:
        self.expanded.append(inputs[0].shape[-2])

    def run(self, *spans: tuple[list[int], int, list[int]]) -> torch.Tensor:
        self.expanded.clear()
        return self._runner.run(
            [Span(t, at, [PageId(p) for p in pages], len(t)) for t, at, pages in spans]
        )


def drawn() -> list[int]:
    generator = torch.Generator().manual_seed(3)
    numbers: list[int] = torch.randint(3, 500, (CONTEXT,), generator=generator).tolist()
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_single_queries_beside_a_piece_are_the_plain_models(kind: str, tmp_path: Path) -> None:
    plain, ready = loaded(tmp_path, kind)
    assert ready.attention.name == "pages+numba+rows+latents"
    tokens, asked = drawn(), Asked(ready)
    one, two = [5, 1, 4, 0], [2, 7, 3]
    asked.run((tokens[:49], 0, one))
    asked.run((tokens[:20], 0, two))
    got = asked.run((tokens[49:50], 49, one), (tokens[20:31], 20, two), (tokens[:9], 0, [6]))
    wanted = plain_logits(plain, tokens)
    expected = torch.cat([wanted[49:50], wanted[20:31], wanted[:9]])
    assert float((got - expected).abs().max() / wanted.abs().max()) < LOGIT_TOLERANCE


def test_a_single_query_expands_nothing_but_its_own_token(tmp_path: Path) -> None:
    _, ready = loaded(tmp_path)
    tokens = drawn()
    asked = Asked(ready)
    asked.run((tokens[:49], 0, [5, 1, 4, 0]))
    layers = len(asked.expanded)
    assert asked.expanded == [49] * layers
    asked.run((tokens[49:50], 49, [5, 1, 4, 0]))
    assert asked.expanded == [1] * layers


@pytest.mark.parametrize("spoilt", ["bias", "hook", "kind", "rank", "expansion"])
def test_layer_that_is_not_of_the_known_kind_is_left_to_gathering(
    spoilt: str, tmp_path: Path
) -> None:
    _, ready = loaded(tmp_path)
    use = survey(ready.model)[1]
    layer = ready.layout.layers[1]
    assert absorbable(use, layer)
    module: Any = use.module
    if spoilt == "bias":
        module.kv_b_proj.bias = torch.nn.Parameter(torch.zeros(module.kv_b_proj.out_features))
    elif spoilt == "hook":
        module.kv_b_proj.register_forward_hook(lambda *asked: None)
    elif spoilt == "kind":
        module.kv_b_proj = torch.nn.Sequential(module.kv_b_proj)
    elif spoilt == "rank":
        module.kv_lora_rank += 1
    else:
        module.expand_kv = None
    assert not absorbable(use, layer)


def test_heads_are_no_latents(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", COMMON)
    ready = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    uses = survey(ready.model)
    assert [uses[n].direct for n in range(3)] == [True] * 3
    assert not any(absorbable(uses[n], ready.layout.layers[n]) for n in range(3))


def test_absorption_that_is_wrong_for_a_model_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.attention.latents import LatentLayer

    right = LatentLayer._absorbed
    monkeypatch.setattr(LatentLayer, "_absorbed", lambda *asked: right(*asked) * 1.1)
    _, ready = loaded(tmp_path)
    assert ready.attention.name == "pages+numba+rows"
