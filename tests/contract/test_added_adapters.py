"""Adapters that are added at run time: each request gets its own one, whatever is in the same step.

Adapters are made by peft, which also says what tokens are right. Requests of the base and of two
adapters are computed together, cold and from what a cache has of each; nobody reuses another's
blocks.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvtier.blocks import Tier
from kvtier.keys import PUBLIC_SCOPE
from tests.contract.test_adapters import MADE, NEW_TOKENS, greedy, make_adapter, prompts
from tests.tiny_models import BLOCK_TOKENS, COMMON, LATENT, BytesCache, save_tiny
from worker.adapter_ports import AdapterPorts
from worker.engine import Engine, EngineSettings
from worker.errors import AdapterError, AdapterRefusedError, AdapterUnknownError
from worker.model_loader import LoadedModel, load_model
from worker.requests import EngineRequest, RequestEnded, RequestId, TokenEvent
from worker.sampling import Sampling

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer"),
]

ADDED = {name: made for name, made in MADE.items() if "latent" not in name} | {
    "deepseek_v3, beside what expands the latent": (
        "deepseek_v3",
        LATENT,
        {"target_modules": ["kv_a_proj_with_mqa", "q_b_proj", "o_proj"]},
    ),
}
NAMES = ("poet", "clerk")
VALUES = {"target_modules": ["v_proj", "up_proj"]}


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def load(root: Path, *names: str, **more: Any) -> LoadedModel:
    adapters = {name: root / name for name in names}
    return load_model(root / "base", block_tokens=BLOCK_TOKENS, adapters=adapters, **more)


def engine_of(loaded: LoadedModel, cache: Any, page_count: int = 96) -> Engine:
    limits = EngineSettings(page_count=page_count, step_tokens=32, load_timeout_seconds=60.0)
    return Engine(loaded, limits, cache, load_threads=0)


def ask(
    engine: Engine, asked: list[tuple[str, list[int]]]
) -> list[tuple[list[int], list[Any], int]]:
    """Tokens, logprobs and hit tokens of each adapter and prompt, computed together."""
    events: list[list[Any]] = []
    for number, (adapter, prompt) in enumerate(asked):
        events.append([])
        request = EngineRequest(
            RequestId(f"r{number}"),
            tuple(prompt),
            NEW_TOKENS,
            PUBLIC_SCOPE,
            adapter=adapter,
            sampling=Sampling(logprobs=20),
        )
        engine.submit(request, events[-1].append)
    while engine.step():
        engine.check_integrity()
    said = []
    for seen in events:
        end = seen[-1]
        assert isinstance(end, RequestEnded)
        assert not end.problem
        told = [event for event in seen if isinstance(event, TokenEvent)]
        hits = end.usage.hit_tokens_by_tier
        tokens, logprobs = [e.token_id for e in told], [e.logprob for e in told]
        said.append((tokens, logprobs, sum(hits.values()) - hits.get(Tier.GPU, 0)))
    return said


@pytest.mark.parametrize("name", ADDED)
def test_each_request_gets_its_own_adapter_beside_the_others(name: str, tmp_path: Path) -> None:
    kind, settings, options = ADDED[name]
    models = {"": save_tiny(tmp_path / "base", kind, settings)}
    for seed, adapter in enumerate(NAMES):
        models[adapter] = make_adapter(tmp_path / "base", tmp_path / adapter, seed, **options)
    # In turns, so that rows of one adapter do not lie together.
    asked = [(adapter, prompt) for prompt in prompts() for adapter in ("poet", "", "clerk")]
    wanted = [greedy(models[adapter], prompt) for adapter, prompt in asked]
    assert len({tuple(tokens) for tokens in wanted[:3]}) == 3, "the adapters change nothing"

    loaded, cache = load(tmp_path, *NAMES), BytesCache()
    engine = engine_of(loaded, cache)
    assert [tokens for tokens, _, _ in ask(engine, asked)] == wanted
    engine.stop()
    # 20 pages for what wants 60 and more: put back, restored, computed again.
    engine = engine_of(loaded, cache, page_count=20)
    warm = ask(engine, asked)
    assert [tokens for tokens, _, _ in warm] == wanted
    assert sum(hits for _, _, hits in warm) > 0
    engine.stop()


def test_nobody_reuses_blocks_of_another_adapter_or_of_none(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    for seed, adapter in enumerate(NAMES):
        make_adapter(tmp_path / "base", tmp_path / adapter, seed, **VALUES)
    loaded, prompt = load(tmp_path, *NAMES), prompts()[1]
    kept: defaultdict[str, BytesCache] = defaultdict(BytesCache)
    cache = AdapterPorts(kept.__getitem__)
    for adapter in ("", "poet", "clerk"):
        engine = engine_of(loaded, cache)
        assert ask(engine, [(adapter, prompt)])[0][2] == 0
        engine.stop()
        # Prompt and answer make six whole blocks, which go where the adapter's go and nowhere else.
        assert len(kept[adapter].blocks) == 6
    assert {len(each.blocks) for each in kept.values()} == {6}
    engine = engine_of(loaded, cache)
    for adapter in ("clerk", "", "poet"):
        assert ask(engine, [(adapter, prompt)])[0][2] == 80
    engine.stop()
    with pytest.raises(AdapterUnknownError, match=r"base has no adapter bard; it has clerk, poet"):
        ask(engine, [("bard", prompt)])


def test_merged_and_added_the_same_adapter_shares_blocks(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    peft = make_adapter(tmp_path / "base", tmp_path / "poet", **VALUES)
    shutil.copytree(tmp_path / "poet", tmp_path / "twin")
    merged = load_model(tmp_path / "base", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")
    added = load(tmp_path, "twin")
    assert added.namespace_of("twin") == merged.namespace
    assert added.namespace == load(tmp_path).namespace
    cache, prompt = BytesCache(), prompts()[1]
    for loaded, adapter, hit in ((merged, "", 0), (added, "twin", 80)):
        engine = engine_of(loaded, cache)
        assert ask(engine, [(adapter, prompt)])[0][::2] == (greedy(peft, prompt), hit)
        engine.stop()


def test_a_deterministic_worker_says_the_same_bits_beside_other_adapters(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    for seed, adapter in enumerate(NAMES):
        make_adapter(tmp_path / "base", tmp_path / adapter, seed, **VALUES)
    loaded = load(tmp_path, *NAMES, dtype="bfloat16", deterministic_tokens=2 * BLOCK_TOKENS)
    assert loaded.namespace_of("poet").engine != loaded.namespace.engine
    asked = [(adapter, prompt) for prompt in prompts() for adapter in ("poet", "", "clerk")]
    alone = []
    for one in asked:
        engine = engine_of(loaded, None)
        alone += [said[:2] for said in ask(engine, [one])]
        engine.stop()
    cache = BytesCache()
    for _ in range(2):
        engine = engine_of(loaded, cache)
        together = ask(engine, asked)
        engine.stop()
        assert [said[:2] for said in together] == alone
    assert sum(hits for _, _, hits in together) > 0


def test_what_the_model_computes_past_a_layer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["up_proj"])

    def past_it(self: Any, x: torch.Tensor) -> torch.Tensor:
        up = torch.nn.functional.linear(x, self.up_proj.weight)
        out: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * up)
        return out

    monkeypatch.setattr(LlamaMLP, "forward", past_it)
    with pytest.raises(AdapterRefusedError, match="with adapter poet added differ"):
        load(tmp_path, "poet")
    # Merged it is right.
    load_model(tmp_path / "base", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")


def test_a_layer_that_takes_the_whole_context_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "deepseek_v3", LATENT)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["kv_b_proj"])
    with pytest.raises(AdapterRefusedError, match=r"kv_b_proj is called with .* merge it alone"):
        load(tmp_path, "poet")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"num_key_value_heads": 4}, r"\[64, 64\] here and \[32, 64\] there"),
        ({"num_hidden_layers": 2}, r"has no model\.layers\.2\.self_attn\.v_proj"),
        ({"num_hidden_layers": 4}, r"no weights for, model\.layers\.3\.self_attn"),
    ],
)
def test_adapter_of_another_base_is_refused(
    other: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "there", "llama", COMMON)
    for seed, adapter in enumerate(NAMES):
        make_adapter(tmp_path / "there", tmp_path / adapter, seed, target_modules=["v_proj"])
    save_tiny(tmp_path / "base", "llama", {**COMMON, **other})
    with pytest.raises(AdapterRefusedError, match=problem):
        load(tmp_path, *NAMES)


def test_spoilt_files_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    weights = tmp_path / "poet" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first, *others = sorted(tensors)
    save_file({name: tensors[name] for name in others}, weights)
    with pytest.raises(AdapterError, match="only one of A and B"):
        load(tmp_path, "poet")
    save_file(tensors | {first: tensors[first][:-1].contiguous()}, weights)
    with pytest.raises(AdapterError, match="its rank is 4"):
        load(tmp_path, "poet")
    save_file(tensors | {first: tensors[first] * float("nan")}, weights)
    with pytest.raises(AdapterError, match="what is no number"):
        load(tmp_path, "poet")
    save_file(tensors, weights)
    config = json.loads((tmp_path / "poet" / "adapter_config.json").read_text())
    (tmp_path / "poet" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(AdapterRefusedError, match="use_dora"):
        load(tmp_path, "poet")


def test_adapters_that_take_too_much_memory_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    size = 3 * 4 * (64 + 32) * 4  # layers, rank, inputs and outputs, float32
    assert load(tmp_path, "poet", adapter_bytes_max=size).added is not None
    with pytest.raises(AdapterRefusedError, match=f"take {size} bytes, and adapter_bytes_max is"):
        load(tmp_path, "poet", adapter_bytes_max=size - 1)


def test_one_that_is_merged_takes_no_others_beside_it(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    with pytest.raises(ValueError, match="takes no others beside it"):
        load(tmp_path, "poet", adapter=tmp_path / "poet")
