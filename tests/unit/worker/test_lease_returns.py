"""A lease goes back once: along with another call, or soon with one of its own."""

import queue
from collections.abc import Iterator, Sequence

import pytest

from worker.lease_returns import RETURNED_AT_ONCE_MAX, LeaseReturns


@pytest.fixture
def sent() -> "queue.Queue[list[str]]":
    return queue.Queue()


@pytest.fixture
def returns(sent: "queue.Queue[list[str]]") -> Iterator[LeaseReturns]:
    def send(lease_ids: Sequence[str]) -> None:
        sent.put(list(lease_ids))

    made = LeaseReturns(send)
    yield made
    made.close()


def test_what_no_call_took_along_goes_back_by_itself_all_at_once(
    returns: LeaseReturns, sent: "queue.Queue[list[str]]"
) -> None:
    for _ in range(2):  # also when the thread has slept in between
        came: list[str] = []
        for name in "abc":
            returns.put(name)
        while len(came) < 3:
            came += sent.get(timeout=10)
        assert came == ["a", "b", "c"]


def test_what_a_call_takes_along_is_handed_out_once(returns: LeaseReturns) -> None:
    names = [str(number) for number in range(RETURNED_AT_ONCE_MAX + 10)]
    returns.close()  # nothing goes by itself
    for name in names:
        returns.put(name)
    assert returns.take() == names[:RETURNED_AT_ONCE_MAX]
    assert returns.take() == names[RETURNED_AT_ONCE_MAX:]
    assert returns.take() == []


def test_a_call_that_fails_does_not_end_the_returning(sent: "queue.Queue[list[str]]") -> None:
    failed: list[str] = []

    def send(lease_ids: Sequence[str]) -> None:
        if not failed:
            failed.extend(lease_ids)
            raise ValueError("the channel is closed")
        sent.put(list(lease_ids))

    returns = LeaseReturns(send)
    try:
        returns.put("lost")
        while not failed:
            sent.empty()
        returns.put("kept")
        assert sent.get(timeout=10) == ["kept"]
    finally:
        returns.close()
