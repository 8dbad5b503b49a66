"""What deciding between loading and computing promises, over any prefix and any rates."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_service.load_or_recompute import (
    GAIN_SECONDS_MIN,
    GAIN_SHARE_MIN,
    Pace,
    worth_loading,
)

BLOCK_BYTES = 1_000_000

prefixes = st.lists(st.booleans(), max_size=40).map(np.array)
costs = st.floats(0, 10)
rates = st.one_of(st.none(), st.floats(1, 1e12))
paces = st.builds(
    Pace,
    bytes_per_second=rates,
    waiting_bytes=st.integers(0, 10**10),
    silent_seconds=st.one_of(st.just(0.0), st.floats(0, 100)),
)


def seconds_until(on_ssd: list[bool], loaded: int, cost: float, pace: Pace) -> float:
    """Loading so many and computing the others, added up block by block."""
    reads = sum(on_ssd[:loaded])
    load = 0.0
    if reads:
        own = reads * BLOCK_BYTES
        if pace.bytes_per_second is not None:
            load = (own + min(own, pace.waiting_bytes)) / pace.bytes_per_second
        load = max(load, pace.silent_seconds)
    return load + (len(on_ssd) - loaded) * cost


@given(prefixes, costs, paces)
def test_no_other_cut_is_better_by_more_than_the_margin(
    on_ssd: np.ndarray, cost: float, pace: Pace
) -> None:
    told = worth_loading(on_ssd, BLOCK_BYTES, cost, pace)
    of = [seconds_until(list(on_ssd), k, cost, pace) for k in range(len(on_ssd) + 1)]
    slack = 1e-9 * max(1.0, *of)
    if told < len(on_ssd):
        assert of[told] <= min(of) + slack
        assert of[-1] - of[told] > max(GAIN_SECONDS_MIN, GAIN_SHARE_MIN * of[-1]) - slack
    else:
        assert of[-1] - min(of) <= max(GAIN_SECONDS_MIN, GAIN_SHARE_MIN * of[-1]) + slack


@given(prefixes, costs, paces)
def test_a_cut_comes_only_before_a_block_on_the_ssd(
    on_ssd: np.ndarray, cost: float, pace: Pace
) -> None:
    told = worth_loading(on_ssd, BLOCK_BYTES, cost, pace)
    assert told == len(on_ssd) or on_ssd[told]


@given(prefixes, costs)
def test_where_nothing_is_known_of_the_disk_all_is_loaded(on_ssd: np.ndarray, cost: float) -> None:
    assert worth_loading(on_ssd, BLOCK_BYTES, cost, Pace(None)) == len(on_ssd)


@given(prefixes, costs, paces, st.floats(1, 100), st.integers(0, 10**9), st.floats(0, 10))
def test_a_slower_or_busier_disk_never_loads_more(
    on_ssd: np.ndarray, cost: float, pace: Pace, slower: float, more: int, silence: float
) -> None:
    rate = pace.bytes_per_second
    worse = Pace(
        None if rate is None else rate / slower,
        pace.waiting_bytes + more,
        pace.silent_seconds + silence,
    )
    # The margin is a share of what loading all takes, so only a cut moves; it never comes back.
    if worth_loading(on_ssd, BLOCK_BYTES, cost, pace) < len(on_ssd):
        assert worth_loading(on_ssd, BLOCK_BYTES, cost, worse) < len(on_ssd)


@given(prefixes, costs, paces, st.floats(0, 1))
def test_cheaper_computing_never_undoes_a_cut(
    on_ssd: np.ndarray, cost: float, pace: Pace, share: float
) -> None:
    if worth_loading(on_ssd, BLOCK_BYTES, cost, pace) < len(on_ssd):
        assert worth_loading(on_ssd, BLOCK_BYTES, cost * share, pace) < len(on_ssd)
