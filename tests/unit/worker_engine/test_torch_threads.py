"""One team of torch's threads: the engine's. That of whoever started it has ended."""

import os
import time
from pathlib import Path

import pytest
import torch

from tests.tiny_models import BLOCK_TOKENS, COMMON, save_tiny, tiny_engine
from worker.attention.openmp import end_team
from worker.model_loader import load_model


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def team() -> set[str]:
    """This thread's, made anew."""
    end_team()
    before = set(os.listdir("/proc/self/task"))
    computed()
    made = set(os.listdir("/proc/self/task")) - before
    assert len(made) == 2
    return made


def computed() -> torch.Tensor:
    return torch.ones(1 << 20).exp().sum()


def ended(threads: set[str]) -> bool:
    """They end by themselves once they are told."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not threads & set(os.listdir("/proc/self/task")):
            return True
        time.sleep(0.01)
    return False


def test_a_team_ends_and_the_next_call_makes_another() -> None:
    right, made = computed(), team()
    assert end_team()
    assert ended(made)
    assert torch.equal(computed(), right)


def test_an_engine_starts_beside_no_other_team(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", COMMON)
    engine = tiny_engine(load_model(tmp_path, block_tokens=BLOCK_TOKENS), None)
    made = team()
    engine.start()
    try:
        assert ended(made)
    finally:
        engine.stop()
