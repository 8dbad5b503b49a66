"""The kernel that is compiled for this processor gives what the written-out formula gives, in
float64; what it does not take goes by torch."""

import importlib.util
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.attention_cases import Case, attended, cases, expected
from worker.attention import choose, numba_backend, page_units
from worker.attention.backend import Options
from worker.attention.choose import attention_choices
from worker.attention.numba_backend import NumbaBackend
from worker.attention.page_units import PageUnits
from worker.attention.step import AttentionStep
from worker.attention.torch_backend import InPlaceBackend
from worker.kv_pages import KvPages
from worker.layout import BlockLayout, LayerLayout

CPU = torch.device("cpu")
TOLERANCE = 1e-5

# Of as few sizes as there are ways through the kernel: each pair is compiled.
SIZES = st.sampled_from([(8, 8), (12, 20), (64, 64)])


def agrees(case: Case, tolerance: float = TOLERANCE) -> None:
    got, wanted = attended(case, NumbaBackend), expected(case)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).abs().max()) <= tolerance


@given(case=cases(), sizes=SIZES)
@example(Case(spans=((40, 1), (39, 1), (23, 1)), shared_pages=5), (8, 8))
@example(Case(spans=((40, 1), (39, 1), (23, 1)), shared_pages=5, sinks=True), (64, 64))
@example(Case(spans=((40, 1), (12, 5), (39, 1)), key_heads=4, other_layer_heads=2), (8, 8))
@example(Case(spans=((39, 1), (31, 1)), window=9, shared_pages=7), (12, 20))
@settings(deadline=None)
def test_attention_over_pages_is_the_formula(case: Case, sizes: tuple[int, int]) -> None:
    agrees(replace(case, dim=sizes[0], value_dim=sizes[1]))


@pytest.mark.parametrize("group", [1, 5, 6, 8])
def test_any_group_of_queries_for_a_key_head(group: int) -> None:
    agrees(Case(spans=((300, 1), (17, 1)), group=group, dim=64, value_dim=64, block_tokens=64))


@pytest.mark.parametrize("window", [None, 500])
def test_long_contexts_of_many_requests(window: int | None) -> None:
    spans = tuple((past, 1) for past in (2047, 1500, 2048, 63, 1999, 0, 700, 2000))
    for shared in (0, 20):
        case = Case(spans, window=window, block_tokens=64, dim=64, value_dim=64, sinks=True)
        agrees(replace(case, shared_pages=shared, in_order=False))


def test_what_it_does_not_take_goes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*sizes: int) -> None:
        raise AssertionError("the kernel was asked for")

    monkeypatch.setattr(numba_backend, "attend_kernel", none)
    agrees(Case(spans=((40, 1), (3, 1)), softcap=2.0))
    agrees(Case(spans=((7, 9), (0, 20))))
    agrees(Case(spans=((40, 1), (3, 1)), dtype=torch.bfloat16), 2e-2)


class Prepared:
    """One query in a pool of one layer, with a head of 8."""

    def __init__(self, context: int) -> None:
        self.kv = KvPages(BlockLayout((LayerLayout(1, 8, 1, 8),), 4, torch.float32), 40, CPU)
        generator = torch.Generator().manual_seed(0)
        for columns in (self.kv.keys[0], self.kv.values[0]):
            columns.tiles.normal_(generator=generator)
        table = list(range(-(-context // 4)))
        self.step = AttentionStep.of([(context - 1, 1, table)], 4, CPU)
        self.query = torch.randn(1, 1, 8, generator=generator)

    def attend(self, backend: type = NumbaBackend) -> torch.Tensor:
        keys = self.kv.keys[0].tiles[0, 0, :, :1]
        found: torch.Tensor = backend(self.kv).attend(
            self.step, 0, self.query, keys, keys, Options(1.0)
        )
        return found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("columns", ["keys", "values"])
@pytest.mark.parametrize("token", [0, 57, 129])
def test_a_number_that_is_none_is_never_lost(columns: str, token: int, bad: float) -> None:
    made = Prepared(context=130)
    getattr(made.kv, columns)[0].tiles[token // 4, :, :, token % 4, 0] = bad
    if columns == "keys" and math.isinf(bad):
        # The score becomes plus infinity; a token with minus infinity rightly has no share.
        made.query[..., 0] = math.copysign(1.0, bad)
    assert not bool(torch.isfinite(made.attend()).all())


def test_scores_far_from_each_other_are_as_torch_weighs_them() -> None:
    for size in (1e-3, 30.0, 1e4, 1e18):
        made = Prepared(context=130)
        made.query *= size
        difference = (made.attend() - made.attend(InPlaceBackend)).abs().max()
        assert float(difference) <= 1e-5, size


def test_every_page_is_seen_once_by_each_of_its_holders() -> None:
    tables = [list(range(40)), [*range(20), *range(40, 60)], [*range(20), *range(60, 63)]]
    spans = [(len(table) * 4 - 2, 1, table) for table in tables]
    made = page_units.page_units(AttentionStep.of(spans, 4, CPU), None, threads=2)
    seen = [(made.entries[e, 0], q) for q, e in pairs(made)]
    assert sorted(seen) == sorted((page, q) for q, table in enumerate(tables) for page in table)
    # Pages that all hold are one unit's, or a few; none is read twice.
    assert len(made.entries) == 63
    assert made.counters.tolist() == [0, *np.diff(made.slot_ends)]
    assert sorted(made.slots.tolist()) == list(range(len(made.slots)))


def pairs(made: PageUnits) -> list[tuple[int, int]]:
    return [
        (int(query), entry)
        for first, end, holder, holders, _ in made.units
        for query in made.holders[holder:holders]
        for entry in range(first, end)
    ]


def test_any_number_of_threads_gives_the_same_within_the_tolerance() -> None:
    case = Case(spans=((400, 1), (90, 1)), dim=64, value_dim=64)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            agrees(case)
    finally:
        torch.set_num_threads(threads)


def test_what_was_compiled_and_how_long_it_took_is_told(caplog: pytest.LogCaptureFixture) -> None:
    numba_backend.attend_kernel.cache_clear()
    with caplog.at_level(logging.INFO, logger="worker.attention.numba_backend"):
        for _ in range(2):
            agrees(Case(spans=((9, 1),)))
    (record,) = caplog.records
    told = vars(record)
    assert (told["key_dim"], told["value_dim"], told["rows"]) == (8, 8, 2)
    assert 0 < told["seconds"] < 300


def test_without_numba_or_threads_the_next_way_is_taken_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(
            importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
        )
        first, *others = attention_choices(CPU)
        assert first.name == "pages+sdpa"
        assert "numba is not installed" in first.why
        assert [choice.name for choice in others] == ["gather+sdpa"]
    monkeypatch.setattr(choose, "parallel", lambda: None)
    first = attention_choices(CPU)[0]
    assert first.name == "pages+sdpa"
    assert "no OpenMP threads" in first.why
