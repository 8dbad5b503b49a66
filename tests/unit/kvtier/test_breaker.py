"""The breaker's moves, on a clock of its own."""

import pytest

from kvtier.breaker import Breaker, BreakerState


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, failures_max=2, wait_seconds=1.0, wait_seconds_max=3.0)


def open_it(breaker: Breaker) -> None:
    breaker.failed()
    breaker.failed()


def test_it_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.admits()
    breaker.failed()
    assert not breaker.admits()
    assert breaker.state is BreakerState.OPEN


def test_a_probe_is_due_once_the_wait_is_over_and_only_one_at_a_time(
    breaker: Breaker, clock: Clock
) -> None:
    assert not breaker.begin_probe()
    open_it(breaker)
    assert not breaker.begin_probe()
    assert breaker.seconds_to_probe() == pytest.approx(1.0)
    clock.now += 1.0
    assert breaker.begin_probe()
    assert not breaker.begin_probe()
    assert not breaker.admits()


def test_a_successful_probe_closes_it(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 1.0
    assert breaker.begin_probe()
    breaker.succeeded()
    assert breaker.admits()
    assert breaker.seconds_to_probe() is None


def test_failed_probes_wait_longer_up_to_the_limit(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    waits = []
    for _ in range(4):
        wait = breaker.seconds_to_probe()
        assert wait is not None
        waits.append(wait)
        clock.now += wait
        assert breaker.begin_probe()
        breaker.failed()
    assert waits == pytest.approx([1.0, 2.0, 3.0, 3.0])


def test_late_results_of_calls_from_before_the_opening_change_nothing(
    breaker: Breaker, clock: Clock
) -> None:
    open_it(breaker)
    breaker.succeeded()
    assert breaker.state is BreakerState.OPEN
    clock.now += 0.6
    breaker.failed()
    assert breaker.seconds_to_probe() == pytest.approx(0.4)


def test_after_a_recovery_the_wait_starts_short_again(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    for wait in (1.0, 2.0):
        clock.now += wait
        assert breaker.begin_probe()
        breaker.failed()
    clock.now += 3.0
    assert breaker.begin_probe()
    breaker.succeeded()
    open_it(breaker)
    assert breaker.seconds_to_probe() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("failures_max", "wait", "longest"), [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 2.0, 1.0)]
)
def test_limits_that_make_no_sense_are_refused(
    failures_max: int, wait: float, longest: float
) -> None:
    with pytest.raises(ValueError):
        Breaker(lambda: 0.0, failures_max, wait, longest)


def test_who_gives_up_counts_for_nothing_and_frees_the_place_of_a_probe(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed()
    breaker.given_up()
    assert breaker.admits()
    breaker.failed()
    assert breaker.state is BreakerState.OPEN
    clock.now += 1.0
    assert breaker.begin_probe()
    breaker.given_up()
    assert breaker.state is BreakerState.OPEN
    assert breaker.begin_probe()


def test_who_probes_with_ordinary_calls_has_one_under_way_and_waits_longer_each_time(
    breaker: Breaker, clock: Clock
) -> None:
    for _ in range(2):
        assert breaker.begin()
        breaker.failed()
    for wait in (1.0, 2.0, 3.0, 3.0):
        clock.now += wait - 0.1
        assert not breaker.ready
        assert not breaker.begin()
        clock.now += 0.2
        assert breaker.ready
        assert breaker.begin()
        assert not breaker.ready
        assert not breaker.begin()
        breaker.failed()
    clock.now += 3.1
    assert breaker.begin()
    breaker.succeeded()
    assert breaker.begin()
    assert breaker.begin(), "closed, it lets all through"


def test_a_probe_that_was_given_up_says_nothing_and_the_next_may_probe(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.abandoned()
    assert breaker.admits()
    open_it(breaker)
    clock.now += 1.0
    assert breaker.begin()
    breaker.abandoned()
    assert breaker.state is BreakerState.OPEN
    assert breaker.begin()
    breaker.failed()
    assert breaker.seconds_to_probe() == pytest.approx(2.0)
