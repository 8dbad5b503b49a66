"""An engine that meets its own bug gives up, and nobody who asked is left without an answer."""

import threading
import time
from typing import Any

import pytest

from worker.errors import EngineFailedError
from worker.requests import EndReason, EngineEvent, RequestId, TokenEvent

PROMPT = list(range(3, 43))


class BrokenClock:
    """Raises once, when told to: stands for a bug anywhere in the engine."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self) -> float:
        if self.broken:
            self.broken = False
            raise AssertionError("a bug")
        return time.monotonic()


class Holding:
    """A sink that holds the engine's thread at the first token."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.events: list[EngineEvent] = []

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, TokenEvent) and not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(30)


def wait_for_end(watcher: Any) -> EndReason:
    until = time.monotonic() + 5
    while not watcher.ends:
        assert time.monotonic() < until, "a request was left without its end"
        time.sleep(0.005)
    return watcher.end.end_reason


def test_requests_that_came_in_with_the_one_that_broke_the_engine_end_too(
    bench: Any, watcher: Any
) -> None:
    clock, holding, behind = BrokenClock(), Holding(), watcher()
    engine = bench.engine(clock=clock)
    engine.start()
    engine.submit(bench.request("a", PROMPT, new=40), holding)
    assert holding.reached.wait(30)
    engine.cancel(RequestId("a"))
    engine.submit(bench.request("b", PROMPT), behind)
    clock.broken = True
    holding.go_on.set()
    assert wait_for_end(behind) is EndReason.ERROR
    with pytest.raises(EngineFailedError):
        engine.submit(bench.request("c", PROMPT), watcher())
