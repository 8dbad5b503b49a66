"""Products of a few rows by the kernel are the formula's in float64, each row's the same bits
whatever is beside it; around a forward of ours the model is as transformers made it."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import BLOCK_TOKENS, COMMON, save_tiny
from worker.model_loader import LoadedModel, load_model
from worker.products import few_rows
from worker.products.few_rows import ROWS_MAX, FewRows, takes

TOLERANCE = 1e-6
SIZES = [(16, 1), (48, 7), (384, 130), (1152, 384), (64, 3000)]


def layer(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias)


def drawn(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(1))


def product(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), FewRows(nn.Sequential(module)).during(rows.shape[-2]):
        found: torch.Tensor = module(rows)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_the_formulas(sizes: tuple[int, int], bias: bool) -> None:
    module = layer(*sizes, bias=bias)
    for count in range(1, ROWS_MAX + 2):
        rows = drawn(1, count, sizes[0])
        right = rows.double() @ module.weight.detach().double().T
        right = right if module.bias is None else right + module.bias.detach().double()
        got = product(module, rows)
        assert got.shape == right.shape
        assert float((got - right).abs().max()) <= TOLERANCE * sizes[0] ** 0.5, count


def test_a_rows_product_is_the_same_bits_whatever_is_beside_it() -> None:
    module, rows = layer(384, 130), drawn(1, ROWS_MAX, 384)
    all_of_them = product(module, rows)
    for first, end in ((0, 2), (3, 11), (7, 16), (14, 16)):
        assert torch.equal(product(module, rows[:, first:end]), all_of_them[:, first:end])
    turned = torch.arange(ROWS_MAX - 1, -1, -1)
    assert torch.equal(product(module, rows[:, turned]), all_of_them[:, turned])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    module, rows = layer(1152, 384), drawn(1, 8, 1152)
    threads, right = torch.get_num_threads(), product(module, rows)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(product(module, rows), right)
    finally:
        torch.set_num_threads(threads)


def test_rows_that_do_not_lie_one_behind_the_other() -> None:
    module, rows = layer(64, 48), drawn(1, 64, 5).transpose(1, 2)
    assert torch.equal(product(module, rows), product(module, rows.contiguous()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_is_never_lost(bad: float) -> None:
    module = layer(64, 48)
    for place in (0, 37, 63):
        rows = drawn(1, 3, 64)
        rows[0, 1, place] = bad
        got = product(module, rows)
        assert not bool(torch.isfinite(got[0, 1]).any())
        assert bool(torch.isfinite(got[0, [0, 2]]).all())


class Own(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_what_is_not_torchs_own_layer_in_single_precision_is_left_to_it() -> None:
    assert takes(layer(64, 48))
    strided = layer(64, 48)
    strided.weight = nn.Parameter(drawn(64, 48).T)
    left: list[nn.Module] = [
        layer(64, 48).bfloat16(),
        layer(40, 48),
        strided,
        Own(64, 48),
        Conv1D(48, 64),
        nn.LayerNorm(64),
        layer(64, 48).to("meta"),
    ]
    assert not any(takes(module) for module in left)


def computed_by(monkeypatch: pytest.MonkeyPatch, change: float = 1.0) -> list[int]:
    """Rows of each product of the kernel, whose outcomes are multiplied by `change`."""
    seen: list[int] = []
    right = few_rows._Product.__call__

    def watched(self: Any, rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.shape[-2])
        return right(self, rows) * change

    monkeypatch.setattr(few_rows._Product, "__call__", watched)
    return seen


def loaded(tmp_path: Path, **settings: Any) -> LoadedModel:
    save_tiny(tmp_path, "llama", COMMON | settings)
    return load_model(tmp_path, block_tokens=BLOCK_TOKENS)


def test_a_step_of_a_few_requests_goes_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = computed_by(monkeypatch)
    ready = loaded(tmp_path)
    assert ready.attention.name == "pages+numba+rows"
    linear = [module for module in ready.model.modules() if isinstance(module, nn.Linear)]
    # The self-test's step of three single tokens is one of those, whole.
    assert seen.count(3) >= len(linear)
    assert all(1 < rows <= ROWS_MAX for rows in seen)
    assert not any("forward" in module.__dict__ for module in ready.model.modules())


def test_hooks_of_a_layer_still_run_and_a_failure_leaves_nothing_behind() -> None:
    module = layer(64, 48)
    right = product(module, drawn(1, 3, 64))
    with module.register_forward_hook(lambda _, given, made: made + 1):
        assert torch.equal(product(module, drawn(1, 3, 64)), right + 1)

    def fails(*given: Any) -> None:
        assert "forward" in module.__dict__
        raise ArithmeticError

    module.register_forward_hook(fails)
    with pytest.raises(ArithmeticError):
        product(module, drawn(1, 3, 64))
    assert "forward" not in module.__dict__


def test_a_product_that_is_wrong_is_told_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed_by(monkeypatch, change=1.01)
    assert loaded(tmp_path).attention.name == "pages+numba"
    told = [record for record in caplog.records if hasattr(record, "attention")]
    assert [vars(record)["attention"] for record in told] == ["pages+numba+rows"]


def test_a_model_without_such_layers_does_not_name_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 40, "intermediate_size": 120, "head_dim": 10}
    assert loaded(tmp_path, **sizes).attention.name == "pages+numba"


def test_how_long_it_took_to_compile_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    few_rows.product_kernel.cache_clear()
    with caplog.at_level(logging.INFO, logger="worker.products.few_rows"):
        for _ in range(2):
            product(layer(64, 48), drawn(1, 2, 64))
    (record,) = caplog.records
    assert 0 < vars(record)["seconds"] < 300


def test_rows_of_another_width_are_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(layer(16, 4), drawn(1, 4, 32))
