"""Rows of a step and their adapters, over one layer: each row gets its own adapter's change."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from worker.adapter_config import parse_config
from worker.adapters import LoraAdapter
from worker.added_adapters import AddedAdapters
from worker.errors import AdapterRefusedError
from worker.model_runner import Span

INPUTS, OUTPUTS = 6, 5


class OneLayer(nn.Module):
    """`proj`, stored as [outputs, inputs] or the other way."""

    device = torch.device("cpu")

    def __init__(self, *, other_way: bool) -> None:
        super().__init__()
        self.proj: Any = Conv1D(OUTPUTS, INPUTS) if other_way else nn.Linear(INPUTS, OUTPUTS)


@dataclass
class Case:
    model: OneLayer
    added: AddedAdapters
    adapters: dict[str, LoraAdapter]

    @staticmethod
    def of(*, other_way: bool) -> "Case":
        config = parse_config(
            b'{"peft_type":"LORA","r":2,"lora_alpha":6,"target_modules":["proj"]}'
        )
        generator = torch.Generator().manual_seed(3)
        adapters = {
            name: LoraAdapter(
                name,
                name,
                config,
                {"proj": torch.randn(2, INPUTS, generator=generator)},
                {"proj": torch.randn(OUTPUTS, 2, generator=generator)},
            )
            for name in ("a", "b")
        }
        model = OneLayer(other_way=other_way)
        return Case(model, AddedAdapters(model, adapters, 1 << 20), adapters)

    def right(self, plain: torch.Tensor, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        rows = []
        for row, out, name in zip(x, plain, names, strict=True):
            if name:
                adapter = self.adapters[name]
                out = out + 3.0 * (adapter.b["proj"] @ (adapter.a["proj"] @ row))
            rows.append(out)
        return torch.stack(rows)


CASES = {other_way: Case.of(other_way=other_way) for other_way in (False, True)}
SPANS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.integers(1, 4), st.integers(0, 4)), min_size=1
)


@given(SPANS, st.booleans(), st.booleans())
def test_each_row_gets_its_own(
    drawn: list[tuple[str, int, int]], other_way: bool, of_wanted: bool
) -> None:
    case = CASES[other_way]
    spans = [
        Span([0] * count, 0, [], min(wanted, count), adapter) for adapter, count, wanted in drawn
    ]
    counts = [span.wanted_logits if of_wanted else len(span.token_ids) for span in spans]
    names = [span.adapter for span, n in zip(spans, counts, strict=True) for _ in range(n)]
    if not names:
        return
    x = torch.randn(len(names), INPUTS, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = case.model.proj(x)
        with case.added.rows_of(spans):
            got = case.model.proj(x[None])[0]
        assert torch.allclose(got, case.right(plain, x, names), atol=1e-5)
        assert torch.equal(case.model.proj(x), plain)  # nothing of a step stays


def test_rows_that_nobody_can_tell_apart_are_refused() -> None:
    case = Case.of(other_way=False)
    with (
        case.added.rows_of([Span([0] * 3, 0, [], 1, "a")]),
        pytest.raises(AdapterRefusedError, match="proj is called with 2 rows for 3 tokens"),
    ):
        case.model.proj(torch.randn(2, INPUTS))
    with case.added.rows_of([Span([0] * 3, 0, [], 1)]):
        case.model.proj(torch.randn(2, INPUTS))  # of the base they may be any


def test_layers_that_were_not_called_are_known() -> None:
    case = Case.of(other_way=False)
    with torch.inference_mode(), case.added.rows_of([Span([0], 0, [], 1, "a")]):
        assert case.added.uncalled("a") == ["proj"]
        case.model.proj(torch.randn(1, INPUTS))
        assert case.added.uncalled("a") == case.added.uncalled("b") == []
