"""What cannot be deterministic is refused with the reason; what is has names of its own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import BLOCK_TOKENS, COMMON, save_tiny
from worker import determinism, proven_attention
from worker.attention.choose import attention_choices
from worker.determinism import check_repeatable, pin_torch, recipe
from worker.engine import Engine, EngineSettings
from worker.errors import DeterminismRefusedError
from worker.grid import Grid
from worker.model_loader import LoadedModel, load_model
from worker.namespace import ENGINE_ID
from worker.prefix_units import PrefixUnits

CPU = torch.device("cpu")
GRID = Grid(2, BLOCK_TOKENS)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(made, "llama", COMMON)
    return made


def load(directory: Path, tokens: int | None = GRID.piece_tokens) -> LoadedModel:
    return load_model(directory, block_tokens=BLOCK_TOKENS, deterministic_tokens=tokens)


def test_it_attends_by_a_way_whose_sums_do_not_ask_where_pages_lie(directory: Path) -> None:
    loaded = load(directory)
    assert loaded.grid == GRID
    assert loaded.attention.name == "gather+sdpa"
    assert torch.are_deterministic_algorithms_enabled()
    assert {choice.by_place for choice in attention_choices(CPU)} == {True, False}


def test_its_blocks_are_those_of_the_same_grid_and_of_no_other_worker(directory: Path) -> None:
    names = [load(directory, tokens).namespace for tokens in (None, 32, 47, 48, 32)]
    ids = [name.id for name in names]
    assert ids[1] == ids[2] == ids[4]  # 47 tokens are two blocks, as 32 are
    assert len({ids[0], ids[1], ids[3]}) == 3
    assert names[0].engine == ENGINE_ID
    assert names[1].engine.startswith(f"{ENGINE_ID};")


def test_whatever_shapes_sums_is_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    told = {recipe(CPU, "gather+sdpa", GRID), recipe(CPU, "other", GRID)}
    told.add(recipe(CPU, "gather+sdpa", Grid(3, BLOCK_TOKENS)))
    assert recipe(CPU, "gather+sdpa", GRID) in told
    torch.set_num_threads(2)
    told.add(recipe(CPU, "gather+sdpa", GRID))
    torch.set_num_threads(1)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    told.add(recipe(CPU, "gather+sdpa", GRID))
    monkeypatch.setattr(determinism, "_processor", lambda: "another one")
    told.add(recipe(CPU, "gather+sdpa", GRID))
    assert len(told) == 6


@pytest.mark.parametrize(
    ("device", "variables", "problem"),
    [
        ("mps", {}, "deterministic needs cpu or cuda"),
        ("cpu", {"OMP_DYNAMIC": "TRUE"}, "OMP_DYNAMIC lets sums be split"),
        ("cuda", {"CUBLAS_WORKSPACE_CONFIG": ""}, "set CUBLAS_WORKSPACE_CONFIG=:4096:8"),
    ],
)
def test_what_adds_in_no_fixed_order_is_refused(
    device: str, variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeterminismRefusedError, match=problem) as refused:
        pin_torch(torch.device(device))
    assert refused.value.reason == "DETERMINISM_REFUSED"
    assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_with_a_fixed_workspace_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "OMP_DYNAMIC" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    pin_torch(torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()


class Drifting:
    """A layer's output that is another one's last bit from its `after`th forward on."""

    def __init__(self, after: int, only: slice) -> None:
        self.after = after
        self.only = only

    def __call__(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        self.after -= 1
        if self.after < 0:
            output = output.clone()
            output[..., self.only] *= 1 + 2**-20
        return output


@pytest.mark.parametrize(
    ("module", "after", "problem"),
    [
        # One forward looks at the model; then five, five again, and four after restored bytes.
        ("model.norm", 7, "logits computed again have other bits, in piece 1 by up to"),
        ("model.layers.1.mlp", 12, "logits after restored bytes have other bits, in piece 1"),
    ],
)
def test_model_that_computes_otherwise_the_second_time_is_refused(
    directory: Path, module: str, after: int, problem: str
) -> None:
    loaded = load(directory)
    layer = loaded.model.get_submodule(module)
    hook = layer.register_forward_hook(Drifting(after, slice(None)))
    try:
        with pytest.raises(DeterminismRefusedError, match=problem):
            check_repeatable(
                loaded.model, loaded.layout, loaded.context_tokens, loaded.attention, GRID
            )
    finally:
        hook.remove()
    check_repeatable(loaded.model, loaded.layout, loaded.context_tokens, loaded.attention, GRID)


def test_a_grid_wider_than_the_context_is_proved_as_far_as_it_goes(directory: Path) -> None:
    loaded = load(directory, 4096)
    assert loaded.grid.piece_tokens > loaded.context_tokens


def test_load_proves_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a way of attending that is right, and adds in another order in other pages."""
    gathering = attention_choices(CPU)[-1]

    class ByPlace(gathering.make):  # type: ignore[misc, name-defined]
        name = "by place"

        def attend(self, step: Any, *asked: Any) -> torch.Tensor:
            out: torch.Tensor = super().attend(step, *asked)
            return out * (1 + int(step.spans[0].pages[0]) * 2**-22)

    choice = type(gathering)(ByPlace.name, "", ByPlace, by_place=False)
    monkeypatch.setattr(proven_attention, "attention_choices", lambda device: (choice,))
    assert load(directory, None).attention is choice
    with pytest.raises(DeterminismRefusedError, match="have other bits"):
        load(directory)


def test_engine_takes_no_prefix_units_beside_a_grid(directory: Path) -> None:
    limits = EngineSettings(page_count=8, units=PrefixUnits(True))
    with pytest.raises(ValueError, match="on the grid of a deterministic model"):
        Engine(load(directory), limits, None)
