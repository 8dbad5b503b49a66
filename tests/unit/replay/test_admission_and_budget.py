"""Which writes to the SSD are let through, and what the others are known to cost."""

from storage.policy.admission import AdmitAll, AdmitFirstNew
from storage.policy.write_budget import BURST_SECONDS, DAY_SECONDS, WriteBudget, day_needed_bytes

HOURLY = 100
DAILY = HOURLY * DAY_SECONDS // BURST_SECONDS


def test_the_default_admits_every_block() -> None:
    assert all(AdmitAll().admits(name, 1_000) for name in range(3))


def test_the_first_new_blocks_of_a_request_are_admitted_and_others_when_they_return() -> None:
    rule = AdmitFirstNew(2, seen_count_max=10)
    assert [rule.admits(name, at) for at, name in enumerate((7, 8, 9, 10))] == [
        True,
        True,
        False,
        False,
    ]
    assert rule.admits(9, 5)
    assert not rule.admits(9, 5)
    assert (rule.refused_blocks, rule.lost_hits) == (3, 1)


def test_no_more_refused_blocks_are_remembered_than_allowed() -> None:
    rule = AdmitFirstNew(0, seen_count_max=2)
    assert [rule.admits(name, 0) for name in (1, 2, 3)] == [False] * 3
    assert not rule.admits(1, 0)
    assert rule.admits(3, 0)


def test_half_of_the_budget_is_kept_for_blocks_used_again() -> None:
    budget = WriteBudget(DAILY, names_max=10)
    assert budget.allowed_bytes(0.0) == HOURLY
    assert budget.spend(1, 50, 0.0, used_again=False)
    assert not budget.spend(2, 1, 0.0, used_again=False)
    assert budget.spend(3, 50, 0.0, used_again=True)
    assert not budget.spend(4, 1, 0.0, used_again=True)
    assert budget.allowed_bytes(0.0) == 0
    assert (budget.turned_away_blocks, budget.turned_away_bytes) == (2, 2)


def test_the_bucket_fills_at_the_days_rate_up_to_an_hour() -> None:
    budget = WriteBudget(DAILY, names_max=10)
    assert budget.spend(1, HOURLY, 0.0, used_again=True)
    assert budget.allowed_bytes(BURST_SECONDS / 4) == HOURLY // 4
    assert budget.allowed_bytes(10 * BURST_SECONDS) == HOURLY


def test_a_clock_that_steps_back_fills_nothing() -> None:
    budget = WriteBudget(DAILY, names_max=10)
    budget.spend(1, HOURLY, 1_000_000.0, used_again=True)
    assert budget.allowed_bytes(0.0) == 0
    assert budget.allowed_bytes(BURST_SECONDS / 2) == HOURLY // 2


def test_bytes_that_had_to_be_written_delay_what_comes_after() -> None:
    budget = WriteBudget(DAILY, names_max=10)
    budget.charge(HOURLY + HOURLY // 2)
    assert budget.allowed_bytes(0.0) == 0
    assert budget.allowed_bytes(BURST_SECONDS) == HOURLY // 2


def test_misses_on_blocks_turned_away_are_the_cost() -> None:
    budget = WriteBudget(DAILY, names_max=2)
    for name in (1, 2, 3, 3):
        budget.spend(name, HOURLY, 0.0, used_again=False)
    assert budget.turned_away_blocks == 3
    for name in (1, 2, 3, 3, 4):
        budget.missed(name)
    assert budget.lost_hits == 2  # 1 is forgotten, 4 was never turned away


def test_the_day_that_a_new_block_needs_is_exact() -> None:
    size = 12_288
    day = day_needed_bytes(size)
    assert WriteBudget(day, names_max=10).allows(size, 0.0, used_again=False)
    assert WriteBudget(day, names_max=10).allowed_new_bytes(0.0) == size
    assert not WriteBudget(day - 48, names_max=10).allows(size, 0.0, used_again=False)
