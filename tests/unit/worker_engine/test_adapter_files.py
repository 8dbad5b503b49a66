"""What of an adapter's two files is no adapter, and what is one that cannot be merged."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.adapter_config import parse_config
from worker.adapters import read_adapter
from worker.errors import AdapterError, AdapterRefusedError

MODULE = "model.layers.0.self_attn.v_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["v_proj"],
}


def weights() -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.{MODULE}.lora_A.weight": torch.ones(4, 16),
        f"base_model.model.{MODULE}.lora_B.weight": torch.ones(8, 4),
    }


def write(directory: Path, config: Any = None, tensors: Any = None) -> Path:
    directory.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (directory / "adapter_config.json").write_text(text)
    save_file(weights() if tensors is None else tensors, directory / "adapter_model.safetensors")
    return directory


def parsed(**options: Any) -> Any:
    return parse_config(json.dumps({**CONFIG, **options}).encode())


def test_adapter_is_what_its_files_say(tmp_path: Path) -> None:
    adapter = read_adapter(write(tmp_path / "poet"))
    assert adapter.name == "poet"
    assert set(adapter.a) == set(adapter.b) == {MODULE}
    assert adapter.config.scale(MODULE) == 2.0
    assert len(adapter.digest) == 64


def test_digest_follows_every_byte_of_both_files(tmp_path: Path) -> None:
    digests = {read_adapter(write(tmp_path / "poet")).digest}
    tensors = weights()
    tensors[f"base_model.model.{MODULE}.lora_B.weight"][0, 0] = 2.0
    digests.add(read_adapter(write(tmp_path / "poet", tensors=tensors)).digest)
    digests.add(read_adapter(write(tmp_path / "poet", {**CONFIG, "revision": "x"})).digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ({**CONFIG, "r": 0}, "rank r"),
        ({**CONFIG, "r": True}, "rank r"),
        ({**CONFIG, "rank_pattern": {"v_proj": "4"}}, "rank v_proj"),
        ({**CONFIG, "rank_pattern": ["v_proj"]}, "rank_pattern is no object"),
        ({**CONFIG, "lora_alpha": None}, "alpha lora_alpha"),
        ('{"peft_type":"LORA","r":4,"target_modules":["a"],"lora_alpha":NaN}', "alpha"),
        ({**CONFIG, "alpha_pattern": {"(": 1}}, "alpha_pattern is no regular expression"),
        ({**CONFIG, "target_modules": None}, "target_modules"),
        ({**CONFIG, "target_modules": [1]}, "target_modules"),
        ({**CONFIG, "target_modules": "*"}, "target_modules is no regular expression"),
        ({**CONFIG, "exclude_modules": 3}, "exclude_modules"),
        ({**CONFIG, "layers_to_transform": "all"}, "layers_to_transform"),
        ({**CONFIG, "r": 8}, "its rank is 8"),
    ],
)
def test_configuration_that_is_none_is_refused(config: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_adapter(write(tmp_path / "poet", config))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"target_modules": "all-linear"}, "all-linear"),
        ({"layers_pattern": ["h"]}, "layers_pattern"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"invented_tomorrow": {"by": 2}}, "invented_tomorrow="),
    ],
)
def test_option_that_is_not_known_must_be_off(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterRefusedError, match=reason):
        parsed(**options)
    (name,) = options
    if name not in ("peft_type", "task_type", "target_modules"):
        parsed(**{name: "none" if name == "bias" else None})


def test_names_are_matched_as_peft_does() -> None:
    config = parsed(
        target_modules=["v_proj", "o_proj"],
        exclude_modules=["layers.3.self_attn.o_proj"],
        layers_to_transform=[1, 3],
        rank_pattern={"layers.1.self_attn.v_proj": 16},
        alpha_pattern={r"layers\.\d+\.self_attn\.o_proj": 32},
        use_rslora=True,
    )
    named = [
        f"model.layers.{layer}.self_attn.{name}"
        for layer in range(4)
        for name in ("q_proj", "v_proj", "o_proj", "not_o_proj")
        if config.names(f"model.layers.{layer}.self_attn.{name}")
    ]
    assert named == [
        "model.layers.1.self_attn.v_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.3.self_attn.v_proj",
    ]
    assert [config.rank(name) for name in named] == [16, 4, 4]
    assert [config.scale(name) for name in named] == [8 / 4, 32 / 2, 8 / 2]
    assert parsed(target_modules=r".*\.v_proj").names(MODULE)
    assert not parsed(target_modules=r"v_proj").names(MODULE)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        (f"base_model.model.{MODULE}.lora_A.weight", torch.ones(4, 4, 1, 1), "its rank is 4"),
        (f"base_model.model.{MODULE}.lora_B.weight", torch.ones(8, 5), "its rank is 4"),
        (f"base_model.model.{MODULE}.lora_B.weight", torch.full((8, 4), math.nan), "no number"),
        (f"base_model.model.{MODULE}.lora_B.weight", torch.ones(8, 4, dtype=torch.int8), "int8"),
        (
            "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight",
            torch.ones(4, 16),
            "one",
        ),
    ],
)
def test_weights_that_are_none_are_refused(
    name: str, tensor: torch.Tensor, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_adapter(write(tmp_path / "poet", tensors={**weights(), name: tensor}))


def test_weights_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    extra = {f"base_model.model.{MODULE}.lora_magnitude_vector.weight": torch.ones(8)}
    with pytest.raises(AdapterRefusedError, match="lora_magnitude_vector"):
        read_adapter(write(tmp_path / "poet", tensors={**weights(), **extra}))


def test_directory_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a directory"):
        read_adapter(tmp_path / "absent")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    directory = write(tmp_path / "poet")
    weights_file = directory / "adapter_model.safetensors"
    weights_file.write_bytes(b"not weights")
    with pytest.raises(AdapterError, match="cannot be used"):
        read_adapter(directory)
    save_file({}, weights_file)
    with pytest.raises(AdapterError, match="empty"):
        read_adapter(directory)
    weights_file.unlink()
    (directory / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(AdapterRefusedError, match="pickled"):
        read_adapter(directory)
