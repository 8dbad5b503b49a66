"""Every way of attending by torch gives what the written-out formula gives, in float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings

from tests.attention_cases import Case, attended, cases, expected
from worker.attention import dense, single_queries, torch_backend
from worker.attention.choose import attention_choices
from worker.attention.torch_backend import GatheringBackend, InPlaceBackend

BACKENDS = [GatheringBackend, InPlaceBackend]
TOLERANCE = 1e-5


def agrees(case: Case, backend: type, tolerance: float = TOLERANCE) -> None:
    got, wanted = attended(case, backend), expected(case)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).abs().max()) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
@example(Case(spans=((40, 1), (39, 1), (23, 1)), shared_pages=5))
@example(Case(spans=((40, 1), (39, 1), (23, 1)), shared_pages=5, sinks=True, in_order=False))
@example(Case(spans=((40, 1), (12, 5), (39, 1)), window=9, key_heads=4, other_layer_heads=2))
@settings(deadline=None)
def test_attention_over_pages_is_the_formula(backend: type, case: Case) -> None:
    agrees(case, backend)


@given(case=cases(wide_values=False))
@settings(deadline=None)
def test_single_queries_attend_to_pages_where_they_lie(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(single_queries, "SPAN_COST", math.inf)
        agrees(case, InPlaceBackend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_as_near_as_its_numbers_are(backend: type, dtype: torch.dtype) -> None:
    for sinks in (False, True):
        spans = ((40, 1), (13, 9), (0, 20), (37, 1))
        agrees(Case(spans, dtype=dtype, sinks=sinks), backend, tolerance=2e-2)


def test_explicit_scores_are_made_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EXPLICIT_SCORES_MAX", 100)
    agrees(Case(spans=((9, 30), (0, 17)), softcap=2.0, sinks=True), GatheringBackend)


def test_pages_of_several_sequences_in_one_run_are_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(query: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(query.shape[0])
        return dense.flash_with_sums(query, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(single_queries, "flash_with_sums", counted)
    attended(Case(spans=((31, 1), (31, 1), (31, 1))), InPlaceBackend)
    assert calls == [24]  # 8 full pages each
    calls.clear()
    attended(Case(spans=((34, 1), (34, 1), (34, 1)), shared_pages=8), InPlaceBackend)
    assert sorted(calls) == [3, 8]  # what is left of each, and the shared pages once for all


def test_pages_that_lie_anywhere_are_copied_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_queries, "COPIED_PAGES_MAX", 2)
    monkeypatch.setattr(single_queries, "SPAN_COST", math.inf)
    for shared in (0, 5):
        agrees(
            Case(spans=((39, 1), (30, 1), (21, 1)), in_order=False, shared_pages=shared),
            InPlaceBackend,
        )


@pytest.mark.parametrize(
    ("case", "worth"),
    [
        (Case(spans=((39, 1), (30, 1))), True),
        (Case(spans=((150, 1),), in_order=False), False),
        (Case(spans=((150, 1), (150, 1)), in_order=False, shared_pages=37), True),
        (Case(spans=((6, 1),) * 4, in_order=False), True),
        (Case(spans=((6, 1),)), False),
    ],
)
def test_single_queries_gather_where_too_many_pages_lie_alone_or_one_has_few(
    case: Case, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def watched(*asked: Any) -> single_queries.SingleQueries:
        planned.append(single_queries.single_queries(*asked))
        return planned[-1]

    monkeypatch.setattr(torch_backend, "single_queries", watched)
    agrees(case, InPlaceBackend)
    assert [plan.worth for plan in planned] == [worth]


def test_a_processor_reads_pages_where_they_lie() -> None:
    names = [choice.name for choice in attention_choices(torch.device("cpu"))]
    assert names == ["pages+numba+rows", "pages+numba", "pages+sdpa", "gather+sdpa"]


def test_another_torch_whose_kernel_is_not_as_expected_gathers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(query: torch.Tensor, *args: object, **kwargs: object) -> object:
        return query, query[..., 0]

    for kernel in (None, other):
        monkeypatch.setattr(dense, "_FLASH", kernel)
        names = [choice.name for choice in attention_choices(torch.device("cpu"))]
        assert names == ["pages+numba+rows", "pages+numba", "gather+sdpa"]
    monkeypatch.setattr(dense, "_FLASH", None)
    agrees(Case(spans=((40, 1), (13, 9), (0, 20)), sinks=True), GatheringBackend)
