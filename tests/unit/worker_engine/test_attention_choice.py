"""The fastest way of attending that is right is taken, and one that is not is told and left."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import BLOCK_TOKENS, COMMON, save_tiny
from worker import proven_attention
from worker.attention.choose import AttentionChoice, attention_choices
from worker.attention.torch_backend import GatheringBackend
from worker.errors import SelfTestFailedError
from worker.model_loader import load_model


class Wrong(GatheringBackend):
    name = "wrong"

    def attend(self, *asked: Any) -> torch.Tensor:
        return super().attend(*asked) * 1.01


class Broken(GatheringBackend):
    name = "broken"

    def attend(self, *asked: Any) -> torch.Tensor:
        raise RuntimeError("out of registers")


def offered(monkeypatch: pytest.MonkeyPatch, *backends: type[GatheringBackend]) -> None:
    choices = tuple(AttentionChoice(backend.name, "", backend) for backend in backends)
    monkeypatch.setattr(proven_attention, "attention_choices", lambda device: choices)


def test_model_is_loaded_with_the_first_of_its_device(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", COMMON)
    loaded = load_model(tmp_path, block_tokens=BLOCK_TOKENS)
    assert loaded.attention == attention_choices(torch.device("cpu"))[0]


def test_what_fails_the_self_test_is_told_and_the_next_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offered(monkeypatch, Wrong, Broken, GatheringBackend)
    save_tiny(tmp_path, "llama", COMMON)
    assert load_model(tmp_path, block_tokens=BLOCK_TOKENS).attention.name == "gather+sdpa"
    told = [(r.attention, r.problem) for r in caplog.records if hasattr(r, "attention")]
    assert [name for name, _ in told] == ["wrong", "broken"]
    assert "first paged logits differ" in told[0][1]
    assert "out of registers" in told[1][1]


def test_model_that_no_way_is_right_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered(monkeypatch, Broken, Wrong)
    save_tiny(tmp_path, "llama", COMMON)
    with pytest.raises(SelfTestFailedError, match="paged logits differ"):
        load_model(tmp_path, block_tokens=BLOCK_TOKENS)
