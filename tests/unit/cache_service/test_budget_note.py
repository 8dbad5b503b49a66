"""The write budget goes on where an earlier life of the service left it, whatever clocks say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_service.budget_note import BudgetNote, Moment
from storage.policy.write_budget import BURST_SECONDS, DAY_SECONDS, WriteBudget

HOURLY = 3600
DAILY = HOURLY * DAY_SECONDS // BURST_SECONDS
"""A byte a second."""

THEN = Moment(b"1" * 16, 1000.0, 1_700_000_000.0)


def left_after(left_bytes: int, later: Moment) -> int:
    """What may be written at a start at `later`."""
    note = BudgetNote.parse(BudgetNote(left_bytes, THEN).pack())
    assert note is not None
    budget = WriteBudget(DAILY, names_max=10)
    budget.resume(note.left_bytes, note.at.seconds_until(later))
    return budget.left_bytes(5.0)


def test_a_start_earns_what_the_time_since_then_brought() -> None:
    assert left_after(100, THEN) == 100
    assert left_after(100, replace(THEN, boot_seconds=1050.0)) == 150
    assert left_after(100, replace(THEN, boot_seconds=1e9)) == HOURLY
    assert left_after(-50, replace(THEN, boot_seconds=1020.0)) == -30


@pytest.mark.parametrize("wall", [0.0, 1e10])
def test_a_wall_clock_that_jumped_changes_nothing_within_one_life_of_the_machine(
    wall: float,
) -> None:
    assert left_after(100, replace(THEN, boot_seconds=1010.0, wall_seconds=wall)) == 110


def test_after_a_reboot_the_wall_clock_counts_and_never_backwards() -> None:
    later = Moment(b"2" * 16, 7.0, THEN.wall_seconds + 60)
    assert left_after(100, later) == 160
    assert left_after(100, replace(later, wall_seconds=0.0)) == 100
    assert left_after(100, replace(later, wall_seconds=1e10)) == HOURLY


def test_a_debt_ends_within_a_day_even_of_a_larger_budget() -> None:
    assert left_after(-1000 * DAILY, THEN) == -DAILY


def test_other_bytes_are_no_note() -> None:
    assert BudgetNote.parse(b"") is None
    assert BudgetNote.parse(b"\2" + BudgetNote(1, THEN).pack()[1:]) is None


@given(
    st.integers(-(2**40), 2**40),
    st.floats(-1e12, 1e12),
    st.floats(-1e12, 1e12),
    st.booleans(),
)
def test_no_start_has_more_than_an_hour_or_less_than_a_days_debt(
    left: int, boot: float, wall: float, rebooted: bool
) -> None:
    found = left_after(left, Moment(b"2" * 16 if rebooted else THEN.boot_id, boot, wall))
    assert -DAILY <= found <= HOURLY
    assert found >= min(max(left, -DAILY), HOURLY)
