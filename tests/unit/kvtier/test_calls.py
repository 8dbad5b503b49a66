"""Calls in flight: refusals are counted and told once in a while."""

import logging

import pytest

from kvtier.access import CallLimits, TooManyCallsError
from kvtier.calls import LOG_SECONDS, Calls


def test_refusals_are_counted_and_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    calls = Calls(CallLimits(calls_max=2, calls_per_session_max=1), lambda: now)
    calls.begin("a")
    for name in "aaa":
        with pytest.raises(TooManyCallsError):
            calls.begin(name)
    calls.begin("b")
    with pytest.raises(TooManyCallsError):
        calls.move("a", "b")
    assert (calls.count, calls.refused_count) == (2, 4)
    now = LOG_SECONDS
    with pytest.raises(TooManyCallsError):
        calls.begin("c")
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [vars(line)["refused_count"] for line in lines] == [1, 4]
