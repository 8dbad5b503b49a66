"""Which directories load, which are refused, and what a loaded model says of itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig, T5Config

from worker.errors import ArchitectureRefusedError, CheckpointError
from worker.model_loader import load_model


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, target)
    return target


def test_loaded_model_tells_what_it_is(tiny_loaded: Any) -> None:
    assert tiny_loaded.name == "tiny-llama"
    assert tiny_loaded.architecture == "LlamaForCausalLM"
    assert (tiny_loaded.dtype, tiny_loaded.context_tokens) == ("float32", 512)
    assert tiny_loaded.vocabulary_size == 128
    assert tiny_loaded.stop_token_ids == frozenset({2})
    # 2 layers, keys and values, 2 heads of 8, float32, 8 tokens.
    assert tiny_loaded.block_bytes == 2 * 2 * 2 * 8 * 4 * 8


def test_namespace_follows_the_files_and_not_the_name(tiny_loaded: Any, copied: Path) -> None:
    assert load_model(copied, block_tokens=8).namespace == tiny_loaded.namespace
    weights = copied / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(raw)
    changed = load_model(copied, block_tokens=8).namespace
    assert changed.id != tiny_loaded.namespace.id
    assert changed.layout == tiny_loaded.namespace.layout


def test_stop_tokens_may_be_a_list(copied: Path) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    assert load_model(copied, block_tokens=8).stop_token_ids == frozenset({2, 5})


def test_unusable_directories_are_refused_with_what_is_wrong(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        load_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no config"):
        load_model(tmp_path / "empty")
    (copied / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="weights"):
        load_model(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(copied)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-model"}'])
def test_config_that_is_not_one_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config"):
        load_model(copied)


def test_checkpoint_that_does_not_say_how_long_a_request_may_be_is_refused(copied: Path) -> None:
    BloomConfig(hidden_size=16, n_layer=1, n_head=2).save_pretrained(copied)
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        load_model(copied)


def test_encoder_decoder_is_refused(copied: Path) -> None:
    T5Config(num_layers=1, d_model=16).save_pretrained(copied)
    with pytest.raises(ArchitectureRefusedError, match="encoder-decoder"):
        load_model(copied)


def test_unknown_dtype_is_a_plain_mistake(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="dtype"):
        load_model(tiny_checkpoint, dtype="int3")


def test_bfloat16_loads_and_passes_its_self_test(tiny_checkpoint: Path, tiny_loaded: Any) -> None:
    half = load_model(tiny_checkpoint, dtype="bfloat16", block_tokens=8)
    assert half.block_bytes * 2 == tiny_loaded.block_bytes
    assert half.namespace.id != tiny_loaded.namespace.id
