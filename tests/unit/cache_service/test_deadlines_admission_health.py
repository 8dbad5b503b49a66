"""The small parts: deadlines, SSD admission, the breaker over the SSD, suspects."""

import pytest

from cache_service.admission import Admission, WriteOffer, admit
from cache_service.deadlines import Deadlines
from cache_service.remembered import Remembered
from cache_service.ssd_health import SsdHealth
from cache_service.suspects import Suspects
from kvtier.keys import BlockHash


def test_what_is_due_comes_once_and_in_order() -> None:
    deadlines = Deadlines()
    for key, at in (("c", 3), ("a", 1), ("b", 2)):
        deadlines.set(key, at)
    assert deadlines.due(0.5) == []
    assert deadlines.due(2) == ["a", "b"]
    assert deadlines.due(2) == []
    assert len(deadlines) == 1


def test_a_moved_deadline_counts_and_a_removed_one_does_not() -> None:
    deadlines = Deadlines()
    for key in ("kept", "gone", "plain"):
        deadlines.set(key, 1)
    for at in (2, 5, 9):
        deadlines.set("kept", at)
    deadlines.remove("gone")
    assert deadlines.due(8) == ["plain"]
    assert deadlines.at("kept") == 9
    assert deadlines.due(9) == ["kept"]
    assert len(deadlines) == 0


def test_only_the_last_that_ended_are_remembered() -> None:
    memory: Remembered[int] = Remembered(2)
    for number, key in enumerate("abc"):
        memory.put(key, number)
    assert [memory.get(key) for key in "abc"] == [None, 1, 2]
    assert len(memory) == 2


@pytest.mark.parametrize(
    ("pending", "record", "available", "answer"),
    [
        (0, 10, True, Admission.WRITE),
        (40, 10, True, Admission.WRITE),
        (41, 10, True, Admission.DEFER),
        (0, 60, True, Admission.WRITE),
        (1, 60, True, Admission.DEFER),
        (0, 101, True, Admission.DECLINE),
        (0, 10, False, Admission.DECLINE),
    ],
)
def test_every_block_that_can_be_written_is_admitted_sooner_or_later(
    pending: int, record: int, available: bool, answer: Admission
) -> None:
    offer = WriteOffer(
        record_bytes=record,
        segment_bytes=100,
        pending_bytes=pending,
        pending_bytes_max=50,
        ssd_available=available,
    )
    assert admit(offer) is answer


def test_the_ssd_counts_as_absent_after_three_failures_in_a_row_until_the_retry() -> None:
    now = 0.0
    health = SsdHealth(lambda: now, retry_seconds=10)
    for _ in range(2):
        health.failed()
    health.succeeded()
    for _ in range(2):
        health.failed()
    assert health.available
    health.failed()
    assert not health.available
    now = 10.0
    assert health.available


def test_an_ssd_that_is_being_closed_stays_absent_whatever_fails_then() -> None:
    now = [0.0]
    health = SsdHealth(lambda: now[0], 10)
    health.retire()
    for _ in range(5):
        health.failed()
    now[0] = 1e9
    assert not health.available


def test_a_block_is_given_up_only_when_it_fails_again_on_a_working_disk() -> None:
    health = SsdHealth(lambda: 0.0, retry_seconds=10)
    suspects = Suspects(health)
    block = BlockHash(bytes(32))
    assert not suspects.failed(block)
    assert not suspects.failed(block)
    health.succeeded()
    assert suspects.failed(block)
    assert not suspects.failed(block)
    suspects.cleared(block)
    health.succeeded()
    assert not suspects.failed(block)
