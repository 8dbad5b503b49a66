"""Which worker is chosen, and what is believed of pages, queues, sessions and rates."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import router as router_module
from gateway.prefix_places import CacheViews, PagesGuess, PrefixFound, find_prefix
from gateway.router import Plan, Router
from gateway.routing import Candidate, Prompt, Rates, choose, predicted_seconds
from gateway.worker_rates import RATE_SECONDS_MAX, FleetRates
from kvtier.block_places import BlockPlaces
from kvtier.v1 import block_pb2, describe_pb2, events_pb2, usage_pb2
from kvtier.v1 import inference_pb2 as pb

PROMPT = Prompt(6400, 64)
"""A hundred blocks."""


def chosen(*candidates: Candidate, prompt: Prompt = PROMPT) -> str:
    found = choose(candidates, prompt)
    assert found is not None
    return found.worker


def test_the_longest_prefix_wins_among_equals() -> None:
    cold, warm = Candidate("a", 0), Candidate("b", 0, page_blocks=50)
    assert chosen(cold, warm) == "b"
    assert chosen(warm, replace(cold, page_blocks=51)) == "a"


def test_pages_are_sooner_than_host_memory_than_ssd_than_computing() -> None:
    places: list[dict[str, int]] = [
        {"page_blocks": 80}, {"host_blocks": 80}, {"ssd_blocks": 80}, {}
    ]  # fmt: skip
    seconds = [predicted_seconds(Candidate("a", 0, **place), PROMPT) for place in places]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 4


def test_without_anything_to_tell_them_apart_the_one_with_fewer_requests_is_taken() -> None:
    assert chosen(Candidate("a", 3), Candidate("b", 1), Candidate("c", 2)) == "b"
    assert chosen(Candidate("a", 1, sent_at=9.0), Candidate("b", 1, sent_at=5.0)) == "b"
    assert chosen(Candidate("a", 1, sent_at=9.0), Candidate("b", 2, sent_at=5.0)) == "a"
    assert choose([Candidate("a", 0), Candidate("b", 1)], PROMPT, {"a"}).worker == "b"  # type: ignore[union-attr]
    assert choose([Candidate("a", 0)], PROMPT, {"a"}) is None
    assert choose([], PROMPT) is None


def test_a_session_tips_the_scales_and_no_more() -> None:
    here = Candidate("a", 0, sticky=True)
    assert chosen(Candidate("b", 0), here) == "a"
    assert chosen(Candidate("b", 0, page_blocks=50), here) == "b"
    assert chosen(Candidate("b", 0), replace(here, queued_tokens=50_000)) == "b"


def test_a_hot_prefix_does_not_draw_everything_to_one_worker() -> None:
    """A burst for one long prefix, faster than it can be computed: it spreads, and evenly."""
    workers = {name: Candidate(name, 0) for name in "abcd"}
    workers["a"] = replace(workers["a"], page_blocks=90)
    counts = dict.fromkeys(workers, 0)
    for _ in range(200):
        found = choose(list(workers.values()), PROMPT)
        assert found is not None
        counts[found.worker] += 1
        workers[found.worker] = replace(
            found,
            running_count=found.running_count + 1,
            queued_tokens=found.queued_tokens + found.miss_tokens(PROMPT),
            page_blocks=90,
        )
    assert min(counts.values()) >= 30
    assert max(counts.values()) <= 80


def test_a_trickle_for_one_prefix_stays_where_it_is_warm() -> None:
    workers = [Candidate("a", 1, page_blocks=90), Candidate("b", 0), Candidate("c", 0)]
    for _ in range(20):  # each is done before the next comes
        assert chosen(*workers) == "a"


COUNTS = st.integers(0, 100)
CANDIDATES = st.builds(
    Candidate,
    worker=st.just("x"),
    running_count=COUNTS,
    queued_tokens=st.integers(0, 10**6),
    page_blocks=COUNTS,
    host_blocks=COUNTS,
    ssd_blocks=COUNTS,
    sticky=st.booleans(),
    rates=st.builds(
        Rates, prefill=st.floats(1, 1e6), host=st.floats(1, 1e7), ssd=st.floats(1, 1e7)
    ),
)


@given(candidate=CANDIDATES, more=st.integers(1, 10**5))
def test_more_to_wait_for_is_never_sooner(candidate: Candidate, more: int) -> None:
    seconds = predicted_seconds(candidate, PROMPT)
    assert seconds > 0
    queued = replace(candidate, queued_tokens=candidate.queued_tokens + more)
    assert predicted_seconds(queued, PROMPT) > seconds
    busier = replace(candidate, running_count=candidate.running_count + 1)
    assert predicted_seconds(busier, PROMPT) > seconds


def hashes(*numbers: int) -> list[bytes]:
    return [n.to_bytes(32, "big") for n in numbers]


def places_with(host: list[bytes], ssd: list[bytes]) -> BlockPlaces:
    places = BlockPlaces()
    places.begin()
    runs = [
        events_pb2.EventRun(
            kind=events_pb2.EVENT_KIND_STORED,
            tier=tier,
            block_hashes=b"".join(blocks),
            parent_hashes=bytes(32 * len(blocks)),
        )
        for tier, blocks in ((block_pb2.TIER_HOST, host), (block_pb2.TIER_SSD, ssd))
    ]
    position = events_pb2.EventPosition(instance_id="i", sequence=len(host) + len(ssd))
    places.apply(
        events_pb2.WatchEventsResponse(
            position=position, events=runs, snapshot=events_pb2.SNAPSHOT_STATE_DONE
        )
    )
    return places


def test_a_prefix_ends_at_the_first_block_that_nobody_has() -> None:
    chain = hashes(1, 2, 3, 4, 5, 6)
    pages = PagesGuess(10)
    pages.used(chain[:2])
    places = places_with(host=chain[1:3], ssd=[chain[3], chain[5]])
    assert find_prefix(chain, pages, places) == PrefixFound(2, 1, 1)
    assert find_prefix(chain, None, places) == PrefixFound()
    assert find_prefix(chain, pages, None) == PrefixFound(2, 0, 0)
    assert find_prefix([], pages, places) == PrefixFound()


def test_pages_hold_no_more_than_there_are_and_lose_the_ends_of_what_was_used_first() -> None:
    pages = PagesGuess(5)
    pages.used(hashes(1, 2, 3))
    pages.used(hashes(1, 7, 8, 9))
    assert len(pages) == 5
    assert [h in pages for h in hashes(1, 2, 3, 7, 8, 9)] == [True, True, False, True, True, True]
    pages.used(hashes(*range(20, 40)))
    assert len(pages) == 5
    assert all(h in pages for h in hashes(20, 21, 22, 23, 24))


def answer(miss: int, seconds: float, host: int = 0, ssd: int = 0, load: float = 0.0) -> Any:
    usage = pb.GenerateUsage(tokens=usage_pb2.TokenUsage(miss_tokens=miss))
    usage.tokens.hit_tokens_by_tier.host = host
    usage.tokens.hit_tokens_by_tier.ssd = ssd
    usage.ttft.FromNanoseconds(round((seconds + load + 5) * 1e9))
    usage.queue_time.FromNanoseconds(5_000_000_000)
    usage.load_time.FromNanoseconds(round(load * 1e9))
    return usage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rates_come_from_answers_and_waiting_is_none_of_them() -> None:
    rates = FleetRates(Clock())
    for _ in range(60):
        rates.learn("a", answer(1000, 2.0, host=6400, load=0.1))
        rates.learn("a", answer(1000, 2.0, ssd=6400, load=1.0))
    assert rates.of("a").prefill == pytest.approx(500, rel=0.01)
    assert rates.of("a").host == pytest.approx(64_000, rel=0.01)
    assert rates.of("a").ssd == pytest.approx(6_400, rel=0.01)
    before = rates.of("a")
    rates.learn("a", answer(5, 1.0))
    rates.learn("a", pb.GenerateUsage())
    rates.learn("a", answer(1000, 0.0))
    assert rates.of("a") == before


def test_who_is_not_known_is_taken_to_be_as_good_as_the_best_that_is() -> None:
    clock = Clock()
    rates = FleetRates(clock)
    assert rates.of("a") == Rates()
    for _ in range(60):
        rates.learn("a", answer(1000, 2.0))
        rates.learn("b", answer(1000, 0.1))
    fast = rates.of("b").prefill
    assert fast > rates.of("a").prefill
    assert rates.of("c").prefill == fast
    clock.now += RATE_SECONDS_MAX + 1
    assert rates.of("a") == rates.of("b") == rates.of("c") == Rates()
    rates.learn("b", answer(1000, 0.1))
    assert rates.of("a").prefill == rates.of("b").prefill > Rates().prefill


def test_what_one_rate_is_says_nothing_of_when_another_was_learned() -> None:
    clock = Clock()
    rates = FleetRates(clock)
    rates.learn("a", answer(1000, 9.0, host=6400, load=9.0))
    clock.now += RATE_SECONDS_MAX - 1
    rates.learn("a", answer(5, 0.1, host=6400, load=9.0))
    clock.now += 2
    assert rates.of("a").prefill == Rates().prefill
    assert rates.of("a").host < Rates().host


class FakeWorker:
    """What the router asks of a worker."""

    def __init__(self, address: str, describe: Any = None) -> None:
        self.address = address
        self.running_count = 0
        self.model = pb.GetModelResponse(page_count=100, context_tokens=4096)
        self.describe = self
        self._describe = describe
        self.asked = 0

    async def DescribePrompt(self, request: Any) -> Any:
        self.asked += 1
        return await self._describe(request)


def request(size: int = 5000, session: str = "") -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x" * size, key_id="k", session_id=session)


async def never(_request: Any) -> Any:
    await asyncio.Event().wait()


async def broken(_request: Any) -> Any:
    raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())


def new_router(clock: Clock | None = None) -> Router:
    return Router(CacheViews({}, {}), clock or Clock())


def saying(**said: Any) -> Any:
    async def describe(_request: Any) -> Any:
        good = {"prompt_tokens": 1000, "block_tokens": 64, "block_hashes": b"x" * 32 * 15}
        return describe_pb2.DescribePromptResponse(**(good | said))

    return describe


async def planned(describe: Any) -> tuple[Plan, list[str]]:
    told: list[str] = []
    workers: Any = [FakeWorker("a", describe), FakeWorker("b", describe)]
    router = Router(CacheViews({}, {}), Clock(), told.append)
    return await router.plan(request(), workers), told


@pytest.mark.parametrize(
    ("describe", "reason"),
    [
        (never, "LATE"),
        (broken, "INTERNAL"),
        (saying(block_tokens=0), "NONSENSE"),
        (saying(block_tokens=-64), "NONSENSE"),
        (saying(prompt_tokens=-1), "NONSENSE"),
        (saying(prompt_tokens=0), "NONSENSE"),
        (saying(prompt_tokens=900), "NONSENSE"),
        (saying(block_hashes=b"x" * 33), "NONSENSE"),
        (saying(prompt_tokens=2**31 - 1, block_tokens=1), "NONSENSE"),
    ],
)
async def test_a_name_that_does_not_come_is_done_without_and_counted(
    describe: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "DESCRIBE_SECONDS_MAX", 0.02)
    plan, told = await planned(describe)
    assert plan.chain == ()
    assert plan.prompt.tokens > 1000
    assert told == [reason]


async def test_a_name_that_comes_is_used() -> None:
    plan, told = await planned(saying())
    assert (plan.prompt, len(plan.chain), told) == (Prompt(1000, 64), 15, [])


async def test_the_log_has_one_line_a_minute_of_names_that_do_not_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    router = Router(CacheViews({}, {}), clock)
    workers: Any = [FakeWorker("a", broken), FakeWorker("b", broken)]
    for _ in range(130):
        await router.plan(request(), workers)
        clock.now += 1
    lines = [each for each in caplog.records if "name" in each.message]
    assert [getattr(each, "missed_count", 0) for each in lines] == [1, 60, 60]


async def test_nothing_is_asked_where_there_is_nothing_to_choose_or_to_gain() -> None:
    router = new_router()
    one: Any = FakeWorker("a", never)
    other: Any = FakeWorker("b", never)
    await router.plan(request(), [one])
    await router.plan(request(size=100), [one, other])
    assert one.asked == other.asked == 0


async def test_what_was_sent_is_taken_back_whatever_ends_it() -> None:
    router = new_router()
    worker: Any = FakeWorker("a")
    plan = Plan(Prompt(1000, 64))
    one, other = router.sent(plan, worker), router.sent(plan, worker)
    assert router.queued_tokens("a") == 2000
    router.first_token(one)
    router.first_token(one)
    assert router.queued_tokens("a") == 1000
    router.first_token(other)
    assert router.queued_tokens("a") == 0
    router.check_integrity()


def ask_one(router: Router, workers: Any, clock: Clock, seconds: float = 0.5) -> str:
    """A request from its choice to its end; which worker it went to."""
    plan = Plan(Prompt(1000, 64))
    worker = router.choose(plan, workers, ())
    assert worker is not None
    sent = router.sent(plan, worker)
    router.first_token(sent)
    router.learn(sent, answer(1000, seconds))
    clock.now += 1
    return worker.address


async def test_a_worker_that_was_slow_once_is_asked_again_within_a_minute_or_so() -> None:
    clock = Clock()
    router = new_router(clock)
    workers: Any = [FakeWorker("a"), FakeWorker("b")]
    slow = ask_one(router, workers, clock, seconds=30.0)
    homes = [ask_one(router, workers, clock) for _ in range(round(RATE_SECONDS_MAX) + 2)]
    assert slow not in homes[:-5]
    assert slow in homes


async def test_equals_take_turns() -> None:
    clock = Clock()
    router = new_router(clock)
    workers: Any = [FakeWorker(name) for name in "abc"]
    homes = []
    for _ in range(6):
        plan = Plan(Prompt(10, 64))
        worker: Any = router.choose(plan, workers, ())
        router.first_token(router.sent(plan, worker))
        homes.append(worker.address)
        clock.now += 1
    assert homes == ["a", "b", "c", "a", "b", "c"]


async def test_a_worker_that_went_away_comes_back_without_a_name_for_being_slow() -> None:
    clock = Clock()
    router = new_router(clock)
    workers: Any = [FakeWorker("a"), FakeWorker("b")]
    slow = ask_one(router, workers, clock, seconds=30.0)
    assert ask_one(router, workers, clock) != slow
    assert ask_one(router, workers, clock) != slow
    router.lost(slow)
    assert ask_one(router, workers, clock) == slow


async def test_pages_of_a_worker_that_went_away_are_forgotten() -> None:
    router = new_router()
    workers: Any = [FakeWorker("a"), FakeWorker("b")]
    plan = Plan(Prompt(6400, 64), tuple(hashes(*range(90))))
    router.first_token(router.sent(plan, workers[1]))
    assert router.choose(plan, workers, ()) is workers[1]
    router.lost("b")
    assert router.choose(plan, workers, ()) is workers[0]


async def test_a_session_that_no_worker_takes_is_not_kept() -> None:
    workers: Any = [FakeWorker("a", broken), FakeWorker("b", broken)]
    for length, kept in ((0, False), (128, True), (129, False), (100_000, False)):
        plan = await new_router().plan(request(size=100, session="x" * length), workers)
        assert (plan.session is not None) == kept, length


async def test_a_session_goes_back_to_its_worker_and_sessions_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "SESSIONS_MAX", 3)
    router = new_router()
    workers: Any = [FakeWorker("a"), FakeWorker("b")]
    plan = await router.plan(request(size=100, session="talk"), workers)
    router.first_token(router.sent(plan, workers[1]))
    assert router.choose(plan, workers, ()) is workers[1]
    other = await router.plan(request(size=100, session="other"), workers)
    assert router.choose(other, workers, ()) is workers[0]
    for number in range(5):
        each = await router.plan(request(size=100, session=str(number)), workers)
        router.first_token(router.sent(each, workers[0]))
        router.check_integrity()
    assert router.choose(plan, workers, ()) is workers[0]
