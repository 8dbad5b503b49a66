"""Attention by one call for spans of many lengths: what the kernel is given, and which kernels are.

The kernel here is the formula that torch documents for its own, which runs on CUDA only.
"""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.attention_cases import Case, attended, cases, expected
from worker.attention.choose import attention_choices, varlen_choices
from worker.attention.torch_backend import GatheringBackend
from worker.attention.varlen_backend import VarlenBackend, varlen_kernel, varlen_problem

CPU = torch.device("cpu")


class Formula:
    """Counts its calls. `shift`: keys that a query sees too many."""

    def __init__(self, shift: int = 0) -> None:
        self.calls = 0
        self._shift = shift

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        query_ends: torch.Tensor,
        key_ends: torch.Tensor,
        queries_max: int,
        keys_max: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> torch.Tensor:
        self.calls += 1
        assert all(x.is_contiguous() for x in (query, keys, values))
        assert (query_ends.dtype, key_ends.dtype) == (torch.int32, torch.int32)
        assert int(query_ends.diff().max()) == queries_max
        assert int(key_ends.diff().max()) == keys_max
        assert (int(query_ends[-1]), int(key_ends[-1])) == (len(query), len(keys))
        assert enable_gqa or query.shape[1] == keys.shape[1]
        parts = []
        for span in range(len(query_ends) - 1):
            q = query[query_ends[span] : query_ends[span + 1]].double().transpose(0, 1)
            k, v = (
                x[key_ends[span] : key_ends[span + 1]].double().transpose(0, 1)
                for x in (keys, values)
            )
            k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
            key_at = torch.arange(k.shape[1])
            query_at = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
            before, after = window_size
            hidden = key_at > query_at + after + self._shift
            if before >= 0:
                hidden |= key_at < query_at - before
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
            parts.append((torch.softmax(scores, -1) @ v).transpose(0, 1))
        return torch.cat(parts).to(query.dtype)


@given(case=cases(), dim=st.sampled_from([8, 16]), half=st.booleans())
@example(case=Case(spans=((40, 1), (12, 5), (39, 1)), window=9, key_heads=4), dim=8, half=True)
@example(case=Case(spans=((0, 5), (0, 1)), window=2), dim=8, half=True)
@settings(deadline=None)
def test_it_is_the_formula_and_the_kernel_has_it_where_it_can(
    case: Case, dim: int, half: bool
) -> None:
    if half:
        case = replace(case, dim=dim, value_dim=dim, dtype=torch.bfloat16)
    kernel = Formula()
    backend: Any = functools.partial(VarlenBackend, kernel=kernel)
    got = attended(case, backend)
    assert float((got.double() - expected(case)).abs().max()) <= (2e-2 if half else 1e-5)
    plain = case.softcap is None and not case.sinks
    assert kernel.calls == (half and plain)


def test_wide_heads_and_uneven_ones_are_gathered() -> None:
    for dims in ({"dim": 264, "value_dim": 264}, {"value_dim": 16}, {"dim": 12, "value_dim": 12}):
        kernel = Formula()
        case = Case(((9, 1),), dtype=torch.bfloat16, **dims)
        attended(case, functools.partial(VarlenBackend, kernel=kernel))  # type: ignore[arg-type]
        assert kernel.calls == 0


def test_a_kernel_is_taken_when_it_does_what_it_should() -> None:
    assert varlen_problem(Formula(), CPU) == ""
    assert "something else" in varlen_problem(Formula(shift=1), CPU)
    assert "no varlen_attn" in varlen_problem(None, CPU)
    # Torch's own is there, and has no code for a processor.
    assert varlen_kernel() is not None
    assert "NotImplementedError" in varlen_problem(varlen_kernel(), CPU)


def test_a_kernel_of_other_arguments_is_passed_over() -> None:
    def older(query: Any, keys: Any, values: Any, query_ends: Any, key_ends: Any) -> Any:
        return query

    assert "TypeError" in varlen_problem(older, CPU)


@pytest.mark.parametrize(
    ("kernel", "names"), [(Formula(), ["varlen", "gather+sdpa"]), (Formula(1), ["gather+sdpa"])]
)
def test_what_is_chosen_says_why(kernel: Any, names: list[str]) -> None:
    (gathering,) = (c for c in attention_choices(CPU) if c.make is GatheringBackend)
    made = varlen_choices(CPU, gathering, kernel)
    assert [choice.name for choice in made] == names
    assert ("something else" in made[0].why) == (len(names) == 1)
