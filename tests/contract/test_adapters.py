"""A merged LoRA adapter is the model that peft makes of the same files, cached under its own name.

Every adapter here is made and saved by peft itself; peft also says what logits and tokens are
right, by adding the adapter at run time, which merges nothing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny_models import (
    BLOCK_TOKENS,
    COMMON,
    EXPERTS,
    LATENT,
    LOGIT_TOLERANCE,
    BytesCache,
    paged_logits,
    plain_logits,
    run_engine,
    save_tiny,
)
from worker.errors import AdapterRefusedError
from worker.model_loader import load_model

# peft asks transformers by a name that is on its way out.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer"),
]

GPT2 = {
    "vocab_size": COMMON["vocab_size"],
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIED = {**COMMON, "tie_word_embeddings": True}
MADE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama, attention": ("llama", COMMON, {"target_modules": ["q_proj", "v_proj"]}),
    "llama, a rank and an alpha for some": (
        "llama",
        COMMON,
        {
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 8},
            "alpha_pattern": {"down_proj": 24},
            "use_rslora": True,
        },
    ),
    "qwen3, a regular expression, some layers left out": (
        "qwen3",
        {**COMMON, "head_dim": 32},
        {"target_modules": r".*\.(gate|up)_proj", "exclude_modules": r".*layers\.1\..*"},
    ),
    "mistral, two layers of three": (
        "mistral",
        {**COMMON, "head_dim": 16},
        {"target_modules": ["o_proj", "v_proj"], "layers_to_transform": [0, 2]},
    ),
    "gpt2, whose weights lie the other way": (
        "gpt2",
        GPT2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    "llama, a head that was tied to the embedding": (
        "llama",
        TIED,
        {"target_modules": ["lm_head", "o_proj"]},
    ),
    "mixtral, beside its experts": (
        "mixtral",
        {**COMMON, **EXPERTS},
        {"target_modules": ["k_proj", "o_proj"]},
    ),
    "deepseek_v3, what expands the latent": (
        "deepseek_v3",
        LATENT,
        {"target_modules": ["kv_b_proj", "kv_a_proj_with_mqa", "q_b_proj"]},
    ),
}
NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_adapter(base: Path, directory: Path, seed: int = 0, **options: Any) -> Any:
    """Saves an adapter that changes something, and returns peft's model."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **options)
    made: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    made.save_pretrained(directory, save_embedding_layers=False)
    return made.eval()


def greedy(model: Any, prompt: list[int]) -> list[int]:
    known = list(prompt)
    for _ in range(NEW_TOKENS):
        known.append(int(plain_logits(model, known)[-1].argmax()))
    return known[len(prompt) :]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(3, 500, (66,), generator=generator).tolist()
    return [[*shared, 7, 8, 9], [*shared, *range(40, 67)], shared[:45]]


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", MADE)
def test_merged_adapter_is_pefts_model_cold_and_warm(name: str, tmp_path: Path) -> None:
    kind, settings, options = MADE[name]
    base, directory = tmp_path / "base", tmp_path / "poet"
    plain = save_tiny(base, kind, settings)
    peft = make_adapter(base, directory, **options)
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        ),
        directory,
    ).eval()
    loaded = load_model(base, block_tokens=BLOCK_TOKENS, adapter=directory)
    assert loaded.name == "base:poet"

    whole = [*prompts()[1], *greedy(peft, prompts()[1])]
    expected = plain_logits(peft, whole)
    assert off(plain_logits(again, whole), expected) < LOGIT_TOLERANCE
    assert off(paged_logits(loaded, whole), expected) < LOGIT_TOLERANCE
    # The adapter does change the model, or nothing above would have been shown.
    assert off(plain_logits(plain, whole), expected) > 0.01

    cache, wanted = BytesCache(), [greedy(peft, prompt) for prompt in prompts()]
    cold = run_engine(loaded, cache, prompts(), NEW_TOKENS)
    assert [tokens for tokens, _ in cold] == wanted
    warm = run_engine(loaded, cache, prompts(), NEW_TOKENS)
    assert [tokens for tokens, _ in warm] == wanted
    assert [hit for _, hit in warm] == [64, 80, 32]


def test_blocks_of_a_base_and_of_its_adapters_never_meet(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    named = {"": load_model(tmp_path / "base", block_tokens=BLOCK_TOKENS)}
    wanted = {"": None}
    for seed, name in enumerate(("poet", "clerk")):
        peft = make_adapter(
            tmp_path / "base", tmp_path / name, seed, target_modules=["v_proj", "up_proj"]
        )
        named[name] = load_model(
            tmp_path / "base", block_tokens=BLOCK_TOKENS, adapter=tmp_path / name
        )
        wanted[name] = [greedy(peft, prompt) for prompt in prompts()]
    assert len({loaded.namespace.id for loaded in named.values()}) == 3
    assert len({loaded.namespace.weights for loaded in named.values()}) == 1

    cache = BytesCache()
    for warm in (False, True):
        for name, loaded in named.items():
            made = run_engine(loaded, cache, prompts(), NEW_TOKENS)
            assert [hit for _, hit in made] == ([64, 80, 32] if warm else [0, 64, 32]), name
            if wanted[name] is not None:
                assert [tokens for tokens, _ in made] == wanted[name]


def test_name_of_the_blocks_follows_the_adapters_files(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    shutil.copytree(tmp_path / "poet", tmp_path / "other")

    def namespace(name: str) -> Any:
        return load_model(
            tmp_path / "base", block_tokens=BLOCK_TOKENS, adapter=tmp_path / name
        ).namespace

    assert namespace("other") == namespace("poet")
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 13}))
    assert namespace("other").id != namespace("poet").id


def test_merged_in_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    peft = make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    loaded = load_model(
        tmp_path / "base", dtype="bfloat16", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet"
    )
    merged = peft.merge_and_unload()
    for ours, theirs in zip(loaded.model.parameters(), merged.parameters(), strict=True):
        half = theirs.to(torch.bfloat16)
        # The base was rounded before, so the sum may be its neighbour.
        assert bool(((ours - half).abs() <= half.abs() * 2**-7 + 1e-3).all())


UNMERGED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "DoRA": ("llama", COMMON, {"target_modules": ["v_proj"], "use_dora": True}, "use_dora"),
    "biases": (
        "qwen2",
        COMMON,
        {"target_modules": ["v_proj"], "bias": "lora_only"},
        "bias is 'lora_only'",
    ),
    "a layer trained whole": (
        "llama",
        COMMON,
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        "modules_to_save",
    ),
    "an embedding": ("llama", COMMON, {"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
    "new tokens": (
        "llama",
        COMMON,
        {"target_modules": ["v_proj"], "trainable_token_indices": [5]},
        "trainable_token_indices",
    ),
    "a bias of B": (
        "qwen2",
        COMMON,
        {"target_modules": ["v_proj"], "lora_bias": True},
        "lora_bias",
    ),
    "a base of its own": (
        "llama",
        COMMON,
        {"target_modules": ["v_proj"], "init_lora_weights": "pissa"},
        "init_lora_weights is 'pissa'",
    ),
    "parameters without a layer": (
        "gpt_oss",
        {**COMMON, **EXPERTS, "head_dim": 32},
        {"target_modules": ["v_proj"], "target_parameters": ["mlp.experts.down_proj"]},
        "target_parameters",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("what", UNMERGED)
def test_adapter_that_cannot_be_merged_whole_is_refused(what: str, tmp_path: Path) -> None:
    kind, settings, options, reason = UNMERGED[what]
    save_tiny(tmp_path / "base", kind, settings)
    make_adapter(tmp_path / "base", tmp_path / "poet", **options)
    with pytest.raises(AdapterRefusedError, match=reason):
        load_model(tmp_path / "base", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")


def test_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "llama", COMMON)
    make_adapter(tmp_path / "base", tmp_path / "poet", target_modules=["v_proj"])
    save_tiny(tmp_path / "wide", "llama", {**COMMON, "num_key_value_heads": 4})
    with pytest.raises(AdapterRefusedError, match=r"\[64, 64\] here and \[32, 64\] there"):
        load_model(tmp_path / "wide", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")
    save_tiny(tmp_path / "short", "llama", {**COMMON, "num_hidden_layers": 2})
    with pytest.raises(AdapterRefusedError, match=r"has no model\.layers\.2\.self_attn\.v_proj"):
        load_model(tmp_path / "short", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")
    save_tiny(tmp_path / "long", "llama", {**COMMON, "num_hidden_layers": 4})
    with pytest.raises(AdapterRefusedError, match=r"no weights for, model\.layers\.3\.self_attn"):
        load_model(tmp_path / "long", block_tokens=BLOCK_TOKENS, adapter=tmp_path / "poet")
