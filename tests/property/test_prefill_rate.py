"""What the cost of computing prompts promises, over any steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.prefill_rate import PrefillRate, pairs

steps = st.lists(
    st.tuples(st.integers(0, 8192), st.integers(1, 512), st.floats(1e-6, 5)),
    min_size=1,
    max_size=30,
)


def measured(spans: list[tuple[int, int, float]]) -> PrefillRate:
    rate = PrefillRate()
    for start, count, seconds in spans:
        rate.computed(count, pairs(start, start + count), seconds)
    return rate


@given(st.integers(0, 300), st.integers(0, 300))
def test_pairs_are_what_each_token_attends_to(start: int, count: int) -> None:
    assert pairs(start, start + count) == sum(at + 1 for at in range(start, start + count))


def test_nothing_is_told_before_something_was_measured() -> None:
    rate = PrefillRate()
    rate.computed(0, 0, 1.0)
    rate.computed(5, 15, 0.0)
    assert (rate.seconds(0, 100), rate.tokens_per_second) == (None, None)


@given(steps, st.integers(0, 10_000), st.integers(0, 5000), st.integers(0, 5000))
def test_more_tokens_never_cost_less_and_nothing_costs_less_than_nothing(
    spans: list[tuple[int, int, float]], start: int, count: int, more: int
) -> None:
    rate = measured(spans)
    short, long = rate.seconds(start, start + count), rate.seconds(start, start + count + more)
    assert short is not None
    assert long is not None
    assert 0 <= short <= long


@given(
    st.floats(1e-6, 1e-2),
    st.floats(1e-9, 1e-5),
    st.lists(st.tuples(st.integers(0, 8192), st.integers(64, 512)), min_size=8, max_size=30),
)
def test_both_costs_are_found_where_steps_differ(
    token_cost: float, pair_cost: float, spans: list[tuple[int, int]]
) -> None:
    true = [token_cost * n + pair_cost * pairs(at, at + n) for at, n in spans]
    rate = measured([(*span, seconds) for span, seconds in zip(spans, true, strict=True)])
    at, n = spans[-1]
    told = rate.seconds(at, at + n)
    if len({span[0] for span in spans}) > 4 and max(at for at, _ in spans) > 2048:
        assert told == pytest.approx(true[-1], rel=0.05)
    else:
        assert told is not None


def test_growth_with_context_is_carried_on_to_longer_prompts() -> None:
    rate = PrefillRate()
    for start in range(0, 4096, 512):
        rate.computed(512, pairs(start, start + 512), 1e-5 * 512 + 1e-8 * pairs(start, start + 512))
    assert rate.seconds(16_384, 16_896) == pytest.approx(
        1e-5 * 512 + 1e-8 * pairs(16_384, 16_896), rel=0.01
    )


def test_what_was_measured_long_ago_fades() -> None:
    rate = PrefillRate()
    for _ in range(20):
        rate.computed(100, 5050, 5.0)
    for _ in range(400):
        rate.computed(100, 5050, 0.1)
    assert rate.tokens_per_second == pytest.approx(1000, rel=0.2)
