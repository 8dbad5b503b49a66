"""Who goes first in the engine: priority, tenants in turn, deadlines, equal prompts."""

from typing import Any

import pytest

from worker.requests import EndReason, TokenEvent

PROMPT = list(range(3, 43))


def first_tokens(bench: Any, engine: Any, requests: list[Any]) -> list[str]:
    """Names in the order of their first tokens."""
    order: list[str] = []

    def noting(name: str) -> Any:
        def note(event: Any) -> None:
            if isinstance(event, TokenEvent) and name not in order:
                order.append(name)

        return note

    for request in requests:
        engine.submit(request, noting(request.request_id))
    bench.finish(engine)
    return order


def prompt_of(number: int) -> list[int]:
    return [number + 3, *PROMPT[:15]]


def test_the_higher_priority_is_admitted_first(bench: Any) -> None:
    engine = bench.engine(running_requests_max=1)
    requests = [
        bench.request(f"p{priority}", prompt_of(n), new=2, priority=priority)
        for n, priority in enumerate([-2, 0, 2, 1, -1])
    ]
    assert first_tokens(bench, engine, requests) == ["p2", "p1", "p0", "p-1", "p-2"]


def test_tenants_take_turns_however_many_requests_one_has(bench: Any) -> None:
    engine = bench.engine(running_requests_max=1)
    flood = [bench.request(f"flood{n}", prompt_of(n), new=2, tenant="flood") for n in range(12)]
    others = [bench.request(f"{t}", prompt_of(20 + n), new=2, tenant=t) for n, t in enumerate("xy")]
    order = first_tokens(bench, engine, [*flood, *others])
    assert set(order[:4]) >= {"x", "y"}
    assert [name for name in order if name.startswith("flood")] == [f"flood{n}" for n in range(12)]


def test_a_short_prompt_is_not_held_up_by_another_tenants_long_one(bench: Any) -> None:
    engine = bench.engine()
    long = bench.request("long", [3 + n % 100 for n in range(400)], new=1, tenant="x")
    shorts = [bench.request(f"s{n}", prompt_of(n), new=1, tenant="y") for n in range(4)]
    assert first_tokens(bench, engine, [long, *shorts])[-1] == "long"


def test_the_lowest_priority_is_admitted_after_eight_others_when_it_waited_past_the_limit(
    bench: Any, clock: Any
) -> None:
    engine = bench.engine(clock=clock, running_requests_max=1, age_limit_seconds=5.0)
    low = bench.request("low", prompt_of(0), new=1, priority=-2)
    high = [bench.request(f"h{n}", prompt_of(n + 1), new=1, priority=2) for n in range(20)]
    order: list[str] = []
    for request in [low, *high]:
        name = request.request_id
        engine.submit(
            request,
            lambda e, name=name: order.append(name) if isinstance(e, TokenEvent) else None,
        )
    clock.now += 6.0
    bench.finish(engine)
    assert order.index("low") == 8


def test_the_lower_priority_is_put_back_for_the_higher(bench: Any, watcher: Any) -> None:
    engine = bench.engine(page_count=15)
    ends: list[str] = []
    for n, priority in enumerate([0, -1, 2]):
        name = f"p{priority}"
        request = bench.request(name, prompt_of(n), new=40, priority=priority)
        engine.submit(
            request, lambda e, name=name: ends.append(name) if hasattr(e, "usage") else None
        )
    bench.finish(engine)
    assert engine.stats().preemptions_total > 0
    assert ends[-1] == "p-1"


@pytest.mark.parametrize("running", [1, 0])
def test_a_late_request_ends_by_itself_wherever_it_stands(
    bench: Any, watcher: Any, clock: Any, running: int
) -> None:
    engine = bench.engine(clock=clock, running_requests_max=1)
    first, second = watcher(), watcher()
    late = [clock.now + 3.0 if running == n else clock.now + 99.0 for n in (1, 0)]
    engine.submit(bench.request("first", prompt_of(1), new=40, deadline=late[0]), first)
    engine.step()
    engine.submit(bench.request("second", prompt_of(2), new=40, deadline=late[1]), second)
    for _ in range(5):
        engine.step()
    clock.now += 2.9
    engine.step()
    assert not first.ends
    assert not second.ends
    clock.now += 0.2
    engine.step()
    ended, other = (first, second) if running else (second, first)
    assert ended.end.end_reason is EndReason.DEADLINE
    assert ended.end.usage.completion_tokens == len(ended.tokens())
    assert bool(ended.tokens()) == bool(running)
    bench.finish(engine)
    assert other.end.end_reason is EndReason.LENGTH


def test_the_earliest_deadline_goes_first_among_equals(bench: Any, clock: Any) -> None:
    engine = bench.engine(clock=clock, running_requests_max=1)
    requests = [
        bench.request(f"d{seconds}", prompt_of(seconds), new=1, deadline=clock.now + seconds)
        for seconds in (50, 20, 90, 70)
    ]
    assert first_tokens(bench, engine, requests) == ["d20", "d50", "d70", "d90"]


def test_equal_long_prompts_are_computed_once_past_the_age_limit_too(
    bench: Any, watcher: Any, clock: Any
) -> None:
    engine = bench.engine(clock=clock, age_limit_seconds=5.0)
    long = [3 + n % 100 for n in range(321)]
    first, second = watcher(), watcher()
    engine.submit(bench.request("a", long, new=1), first)
    engine.submit(bench.request("b", long, new=1), second)
    while not second.ends:
        clock.now += 4.0
        assert engine.step()
    assert engine.stats().prefill_tokens_total == 321 + 1
    assert second.end.usage.hit_tokens == 320
    assert second.tokens() == first.tokens()


def test_who_waits_for_a_prompt_computes_it_when_that_request_is_gone(
    bench: Any, watcher: Any, clock: Any
) -> None:
    engine = bench.engine(clock=clock)
    long = [3 + n % 100 for n in range(200)]
    first, second = watcher(), watcher()
    engine.submit(bench.request("a", long, new=1), first)
    engine.submit(bench.request("b", long, new=1), second)
    for _ in range(3):
        engine.step()
    assert engine.stats().waiting_count == 1
    engine.cancel("a")
    bench.finish(engine)
    assert second.tokens() == bench.plain_greedy(long, 1)
    assert second.end.usage.hit_tokens == 48


def test_a_prompt_alone_takes_fewer_steps_than_one_beside_an_answer(
    bench: Any, watcher: Any
) -> None:
    long = [3 + n % 100 for n in range(96)]
    engine = bench.engine(step_tokens=16, prompt_step_tokens=32)
    (alone,) = bench.run(engine, bench.request("alone", long, new=1))
    assert engine.stats().steps_total == 3
    engine.submit(bench.request("answer", PROMPT, new=40), watcher())
    while not engine.stats().decode_tokens_total:
        engine.step()
    steps, beside = engine.stats().steps_total, watcher()
    engine.submit(bench.request("beside", long[::-1], new=1), beside)
    while not beside.ends:
        engine.step()
    # The answer's token leaves room for one block of two in each step.
    assert engine.stats().steps_total - steps == 12
    assert beside.tokens() == bench.plain_greedy(long[::-1], 1)
    assert alone.tokens() == bench.plain_greedy(long, 1)
