"""Queues, pages, cancellation and shutdown: every request ends once, and nothing leaks."""

from typing import Any

import pytest

from kvtier.serving import ShuttingDownError
from worker.errors import PromptTooLongError, QueueFullError
from worker.requests import EndReason, RequestId
from worker.sampling import Sampling

PROMPT = list(range(3, 43))


def test_one_request_more_than_may_wait_is_refused(bench: Any, watcher: Any) -> None:
    engine = bench.engine(waiting_requests_max=2)
    for name in "ab":
        engine.submit(bench.request(name, PROMPT), watcher())
    with pytest.raises(QueueFullError):
        engine.submit(bench.request("c", PROMPT), watcher())
    engine.step()
    engine.submit(bench.request("d", PROMPT), watcher())


def test_request_that_can_never_fit_is_refused_at_once(bench: Any, watcher: Any) -> None:
    engine = bench.engine(page_count=6)
    engine.submit(bench.request("fits", PROMPT, new=9), watcher())
    with pytest.raises(PromptTooLongError):
        engine.submit(bench.request("never", PROMPT, new=10), watcher())


def test_requests_that_together_pass_the_pool_run_one_after_the_other(bench: Any) -> None:
    engine = bench.engine(page_count=7)
    prompts = [[n + 3, *PROMPT] for n in range(3)]
    watchers = bench.run(engine, *(bench.request(f"r{n}", p, new=8) for n, p in enumerate(prompts)))
    for watcher, prompt in zip(watchers, prompts, strict=True):
        assert watcher.tokens() == bench.plain_greedy(prompt, 8)
    assert engine.stats().evicted_pages_total > 0


def test_pages_reserved_for_a_running_completion_are_not_given_away(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine(page_count=8)
    engine.submit(bench.request("long", PROMPT[:8], new=33), watcher())  # holds 1, reserves 4
    engine.step()
    engine.submit(bench.request("wide", PROMPT[::-1][:32], new=1), watcher())  # needs 4 of 3
    engine.step()
    assert engine.stats().waiting_count == 1
    bench.finish(engine)


def test_resident_pages_that_a_request_matches_do_not_count_as_room_for_its_others(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine(page_count=6)
    bench.run(engine, bench.request("seed", PROMPT[:16], new=1))  # leaves 2 idle
    engine.submit(
        bench.request("other", PROMPT[::-1][:16], new=9), watcher()
    )  # holds 2, reserves 1
    engine.step()
    engine.submit(bench.request("same", PROMPT[:17], new=16), watcher())  # 2 idle ones and 2 of 1
    engine.step()
    assert engine.stats().waiting_count == 1
    bench.finish(engine)


def test_cancelled_request_frees_its_pages_and_counts_what_was_computed(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT), seen)
    engine.step()  # 16 of 40 prompt tokens
    engine.cancel(RequestId("a"))
    engine.step()
    engine.check_integrity()
    assert seen.end.end_reason is EndReason.CANCELLED
    assert seen.end.usage.prompt_tokens == seen.end.usage.miss_tokens == 16
    stats = engine.stats()
    assert stats.free_page_count + stats.cached_page_count == stats.page_count
    assert stats.cached_page_count == 2


def test_waiting_request_can_be_cancelled_and_deadlines_have_their_reason(
    bench: Any, watcher: Any
) -> None:
    engine = bench.engine(running_requests_max=1)
    first, second = watcher(), watcher()
    engine.submit(bench.request("first", PROMPT), first)
    engine.submit(bench.request("second", PROMPT[5:]), second)
    engine.step()
    engine.cancel(RequestId("second"), EndReason.DEADLINE)
    engine.step()
    assert second.end.end_reason is EndReason.DEADLINE
    assert second.end.usage.prompt_tokens == 0
    bench.finish(engine)
    assert first.end.end_reason is EndReason.LENGTH


def test_stopped_sample_ends_alone(bench: Any, watcher: Any) -> None:
    engine = bench.engine()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT, new=10, sample_count=2), seen)
    while len(seen.tokens(1)) < 3:
        engine.step()
    engine.stop_sample(RequestId("a"), 1)
    bench.finish(engine)
    assert seen.finishes == {0: "length", 1: "stop"}
    assert (len(seen.tokens(0)), len(seen.tokens(1))) == (10, 3)
    assert seen.end.usage.completion_tokens == 13


def test_stop_token_is_not_delivered_and_ends_with_stop(bench: Any) -> None:
    greedy = bench.plain_greedy(PROMPT, 8)
    stop = greedy[4]
    expected = greedy[: greedy.index(stop)]
    request = bench.request("a", PROMPT, new=8, stop_token_ids=frozenset({stop}))
    (watcher,) = bench.run(bench.engine(), request)
    assert watcher.tokens() == expected
    assert watcher.end.end_reason is EndReason.STOP


def test_old_request_is_not_passed_for_ever_by_longer_prefixes(
    bench: Any, watcher: Any, clock: Any
) -> None:
    engine = bench.engine(clock=clock, running_requests_max=1, age_limit_seconds=5.0)
    bench.run(engine, bench.request("seed", PROMPT))
    order: list[str] = []

    def noting(name: str) -> Any:
        return lambda event: order.append(name) if name not in order else None

    engine.submit(bench.request("cold", PROMPT[::-1], new=1), noting("cold"))
    engine.submit(bench.request("warm1", PROMPT, new=1), noting("warm1"))
    while not order:
        engine.step()
    clock.now += 6.0
    engine.submit(bench.request("warm2", PROMPT, new=1), noting("warm2"))
    bench.finish(engine)
    assert order == ["warm1", "cold", "warm2"]


def test_stopping_ends_what_is_left_and_refuses_what_comes(bench: Any, watcher: Any) -> None:
    engine = bench.engine(load_threads=1)
    engine.start()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT, new=400), seen)
    engine.stop()
    assert seen.end.end_reason is EndReason.ERROR
    with pytest.raises(ShuttingDownError):
        engine.submit(bench.request("b", PROMPT), watcher())
    engine.check_integrity()


def test_draining_waits_for_accepted_requests_and_their_offers(
    bench: Any, watcher: Any, memory_cache: Any
) -> None:
    engine = bench.engine(memory_cache, load_threads=2)
    engine.start()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT, new=20), seen)
    assert engine.drain(60.0)
    assert seen.end.end_reason is EndReason.LENGTH
    assert len(memory_cache.blocks) == 7
    with pytest.raises(ShuttingDownError):
        engine.submit(bench.request("b", PROMPT), watcher())


def test_failing_model_ends_its_requests_and_the_engine_goes_on(
    bench: Any, watcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT), seen)
    with monkeypatch.context() as patch:
        patch.setattr(bench.loaded.model, "forward", _out_of_memory)
        engine.step()
    assert seen.end.end_reason is EndReason.ERROR
    assert "RuntimeError" in seen.end.problem
    engine.check_integrity()
    (after,) = bench.run(engine, bench.request("b", PROMPT))
    assert after.tokens() == bench.plain_greedy(PROMPT, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_their_request_and_the_engine_goes_on(
    bench: Any, watcher: Any, monkeypatch: pytest.MonkeyPatch, value: float, temperature: float
) -> None:
    engine = bench.engine()
    seen = watcher()
    engine.submit(bench.request("a", PROMPT, sampling=Sampling(temperature)), seen)
    forward = bench.loaded.model.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits.fill_(value)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(bench.loaded.model, "forward", spoilt)
        for _ in range(3):
            engine.step()
    assert seen.end.end_reason is EndReason.ERROR
    assert "not numbers" in seen.end.problem
    engine.check_integrity()
    (after,) = bench.run(engine, bench.request("b", PROMPT))
    assert after.tokens() == bench.plain_greedy(PROMPT, 4)


def _out_of_memory(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("out of memory")
