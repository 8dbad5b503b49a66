"""`kvtier model check` says what a worker would: the model, its names of blocks, or the refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.tiny_models import COMMON, LATENT, WINDOW, save_tiny
from worker.model_commands import app
from worker.model_loader import load_model
from worker.self_test import TOLERANCES


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def check(*arguments: object) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def checked(*arguments: object) -> dict[str, Any]:
    status, out, _ = check(*arguments, "--json")
    assert status == 0
    data: dict[str, Any] = json.loads(out)
    assert data["served"] is True
    return data


def test_it_says_what_a_worker_would_cache(tmp_path: Path) -> None:
    settings = {**COMMON, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}
    save_tiny(tmp_path / "tiny", "qwen2", settings)
    loaded = load_model(tmp_path / "tiny", block_tokens=16)
    data = checked(tmp_path / "tiny", "--block-tokens", 16)
    assert data["model"] == "tiny"
    assert data["architecture"] == "Qwen2ForCausalLM"
    assert data["namespace_id"] == loaded.namespace.id.hex()
    assert data["layout"] == loaded.layout.describe()
    assert data["block_bytes"] == loaded.block_bytes
    # 3 layers, keys and values, 2 heads of 16, float32.
    assert data["bytes_per_token"] == 3 * 2 * 2 * 16 * 4
    assert data["context_tokens"] == 512
    assert data["context_bytes"] == 512 * data["bytes_per_token"]
    heads = {"key_heads": 2, "key_dim": 16, "value_heads": 2, "value_dim": 16}
    assert data["layers"] == [
        {"first_layer": 0, "layer_count": 1, **heads, "window_tokens": None},
        {"first_layer": 1, "layer_count": 2, **heads, "window_tokens": 24},
    ]
    assert data["logit_difference"] == loaded.difference
    assert 0 < loaded.difference < data["logit_tolerance"] == TOLERANCES[torch.float32]


def test_it_shows_latents_and_types_as_they_are(tmp_path: Path) -> None:
    save_tiny(tmp_path, "deepseek_v3", LATENT)
    data = checked(tmp_path, "--dtype", "bfloat16")
    assert data["dtype"] == "bfloat16"
    assert data["bytes_per_token"] == 3 * (32 + 16) * 2
    (layers,) = data["layers"]
    assert (layers["key_dim"], layers["value_dim"]) == (32, 16)
    assert data["block_tokens"] == 64


def test_people_get_a_table(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny", "llama", COMMON)
    status, out, _ = check(tmp_path / "tiny")
    assert status == 0
    assert "tiny can be served" in out
    assert "layers 0 to 2: 2 x 16 keys, 2 x 16 values" in out
    assert "768 bytes" in out


def test_what_a_worker_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    save_tiny(tmp_path / "jamba", "jamba", COMMON)
    status, out, err = check(tmp_path / "jamba", "--json")
    assert status == 1
    assert json.loads(out)["served"] is False
    assert json.loads(out)["reason"] == "ARCHITECTURE_REFUSED"
    assert "recurrent" in json.loads(out)["problem"]
    assert err.startswith("kvtier model check: ARCHITECTURE_REFUSED: ")

    status, out, err = check(tmp_path / "absent")
    assert (status, out) == (1, "")
    assert "CHECKPOINT_INVALID" in err

    save_tiny(tmp_path / "tiny", "llama", COMMON)
    for arguments, reason in (
        (("--rope-regime", "long"), "ARCHITECTURE_REFUSED"),
        (("--adapter", tmp_path / "absent"), "ADAPTER_INVALID"),
        (("--device", "abacus"), "DEVICE_UNAVAILABLE"),
    ):
        status, out, err = check(tmp_path / "tiny", *arguments)
        assert (status, out) == (1, "")
        assert reason in err
    assert check(tmp_path / "tiny", "--dtype", "int3")[0] == 2


def test_it_proves_that_a_model_computes_the_same_each_time(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", COMMON)
    ordinary = checked(tmp_path, "--block-tokens", 16)
    try:
        proved = checked(tmp_path, "--block-tokens", 16, "--deterministic", "--step-tokens", 50)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ordinary["deterministic_piece_tokens"] == 0
    assert proved["deterministic_piece_tokens"] == 48
    assert proved["attention"] == "gather+sdpa"
    assert proved["namespace_id"] != ordinary["namespace_id"]
