"""The gate before admission: billing's word, and what is done without it. Billing is scripted here;
`tests/contract/worker_edge/test_budgets.py` has a real one.
"""

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from kvtier.errors import WireError
from worker.budget_client import BudgetAnswer, BudgetNeed
from worker.budget_gate import Allowance, BudgetGate
from worker.errors import (
    BudgetExhaustedError,
    BudgetUnavailableError,
    InsufficientBalanceError,
    PriceUnknownError,
    QuotaExceededError,
    RequestDeadlineError,
)
from worker.usage_event import AdmittedRequest

Code = grpc.StatusCode


def need(name: str = "r1", tokens: int = 10) -> BudgetNeed:
    return BudgetNeed(AdmittedRequest(name, "acme", "demo", "n", "", 1), tokens, 0, "", 5)


def refusal(code: grpc.StatusCode, reason: str = "", **metadata: str) -> BudgetAnswer:
    return BudgetAnswer(False, WireError(code, reason, "because", metadata))


AWAY = refusal(Code.UNAVAILABLE)


class Billing:
    def __init__(self) -> None:
        self.answer: Any = BudgetAnswer(True)
        self.asked: list[str] = []
        self.released: list[str] = []

    async def reserve(self, need: BudgetNeed, timeout_seconds: float) -> BudgetAnswer:
        self.asked.append(need.request.request_id)
        assert 0 < timeout_seconds <= 2.0
        if callable(self.answer):
            return await self.answer()
        return self.answer

    def release(self, request_id: str) -> None:
        self.released.append(request_id)


class World:
    def __init__(self, allowance: Allowance | None = None) -> None:
        self.now = 100.0
        self.billing = Billing()
        self.outcomes: Counter[str] = Counter()
        self.gate = BudgetGate(self.billing, self, 2.0, allowance, lambda: self.now)

    def budget_asked(self, outcome: str, seconds: float) -> None:
        self.outcomes[outcome] += 1

    async def admit(self, name: str = "r1", tokens: int = 10) -> None:
        await self.gate.admit(need(name, tokens), 60.0)


async def test_what_billing_holds_or_lets_free_is_admitted() -> None:
    world = World()
    await world.admit()
    world.billing.answer = BudgetAnswer(False)
    await world.admit("r2")
    assert world.outcomes == {"reserved": 1, "free": 1}
    assert world.billing.released == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("INSUFFICIENT_BALANCE", InsufficientBalanceError),
        ("BUDGET_EXHAUSTED", BudgetExhaustedError),
        ("QUOTA_EXCEEDED", QuotaExceededError),
        ("PRICE_UNKNOWN", PriceUnknownError),
    ],
)
async def test_a_refusal_keeps_its_name_and_what_it_says(reason: str, kind: Any) -> None:
    world = World(Allowance(10, 1000))
    world.billing.answer = refusal(
        Code.RESOURCE_EXHAUSTED, reason, retry_after_seconds="7", limit="3"
    )
    with pytest.raises(kind) as refused:
        await world.admit()
    assert refused.value.reason == reason
    assert refused.value.metadata == {"retry_after_seconds": "7", "limit": "3"}
    assert world.outcomes == {"refused": 1}


async def test_without_billing_nothing_is_admitted_and_what_may_be_held_is_released() -> None:
    world = World()
    world.billing.answer = AWAY
    with pytest.raises(BudgetUnavailableError):
        await world.admit()
    assert (world.billing.released, world.outcomes) == (["r1"], {"unavailable": 1})


async def test_a_billing_service_that_hangs_is_soon_not_asked_by_everybody() -> None:
    world = World()
    world.billing.answer = refusal(Code.DEADLINE_EXCEEDED)
    for number in range(10):
        with pytest.raises(BudgetUnavailableError):
            await world.admit(f"r{number}")
    assert world.billing.asked == ["r0", "r1", "r2"]
    world.now += 0.5
    world.billing.answer = BudgetAnswer(True)
    await world.admit("probe")
    await world.admit("next")
    assert world.billing.asked[3:] == ["probe", "next"]


async def test_the_allowance_is_bounded_and_whole_again_when_billing_answers() -> None:
    world = World(Allowance(requests=3, tokens=100))
    world.billing.answer = AWAY
    await world.admit("a", 50)
    await world.admit("b", 50)
    with pytest.raises(BudgetUnavailableError, match="used up"):
        await world.admit("c", 1)
    world.now += 10
    world.billing.answer = BudgetAnswer(True)
    await world.admit("d", 1_000_000)
    world.billing.answer = AWAY
    for name in ("e", "f", "g"):
        await world.admit(name, 1)
    with pytest.raises(BudgetUnavailableError):
        await world.admit("h", 1)
    assert world.outcomes == {"allowance": 5, "unavailable": 2, "reserved": 1}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"),
        (Code.UNIMPLEMENTED, ""),
        (Code.INVALID_ARGUMENT, "INVALID_RESERVATION"),
        (Code.RESOURCE_EXHAUSTED, "RESERVATIONS_FULL"),
        (Code.ALREADY_EXISTS, "RESERVATION_CONFLICT"),
        (Code.INTERNAL, "INTERNAL"),
    ],
)
async def test_no_other_answer_is_a_way_around(code: grpc.StatusCode, reason: str) -> None:
    world = World(Allowance(10, 1000))
    world.billing.answer = refusal(code, reason)
    with pytest.raises(BudgetUnavailableError, match=code.name):
        await world.admit()


async def test_who_gives_up_while_billing_is_asked_leaves_nothing_held() -> None:
    world = World()
    asked = asyncio.Event()

    async def forever() -> BudgetAnswer:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.billing.answer = forever
    task = asyncio.create_task(world.admit())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.billing.released == ["r1"]


async def test_a_request_is_asked_for_no_longer_than_it_has_left() -> None:
    world = World()
    told: list[float] = []
    reserve = world.billing.reserve

    async def note(need: BudgetNeed, timeout_seconds: float) -> BudgetAnswer:
        told.append(timeout_seconds)
        return await reserve(need, timeout_seconds)

    world.billing.reserve = note  # type: ignore[method-assign]
    await world.gate.admit(need(), 0.25)
    await world.gate.admit(need(), -1.0)
    assert told == [0.25, 0.001]


async def test_callers_that_give_up_say_nothing_about_billing() -> None:
    world = World(Allowance(10, 1000))
    asked = asyncio.Event()

    async def forever() -> BudgetAnswer:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    for number in range(5):
        world.billing.answer = forever
        asked.clear()
        task = asyncio.create_task(world.admit(f"gone{number}"))
        async with asyncio.timeout(10):
            await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    world.billing.answer = refusal(Code.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
    with pytest.raises(BudgetExhaustedError):
        await world.admit("asked")
    assert world.billing.asked[-1] == "asked"
    assert world.outcomes == {"given_up": 5, "refused": 1}


async def test_a_callers_own_deadline_is_no_failure_of_billing_and_no_way_around_it() -> None:
    world = World(Allowance(10, 1000))
    world.billing.answer = refusal(Code.DEADLINE_EXCEEDED)
    for number in range(5):
        with pytest.raises(RequestDeadlineError):
            await world.gate.admit(need(f"short{number}"), 0.5)
    assert world.billing.released == [f"short{number}" for number in range(5)]
    world.billing.answer = refusal(Code.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
    with pytest.raises(BudgetExhaustedError):
        await world.admit("asked")
    assert world.outcomes == {"given_up": 5, "refused": 1}


async def test_a_probe_whose_caller_gives_up_leaves_its_place_to_the_next() -> None:
    world = World()
    world.billing.answer = AWAY
    for number in range(3):
        with pytest.raises(BudgetUnavailableError):
            await world.admit(f"r{number}")
    world.now += 0.5
    world.billing.answer = refusal(Code.DEADLINE_EXCEEDED)
    with pytest.raises(RequestDeadlineError):
        await world.gate.admit(need("short"), 0.5)
    world.billing.answer = BudgetAnswer(True)
    await world.admit("next")
    assert world.billing.asked[3:] == ["short", "next"]


@pytest.mark.parametrize(
    ("code", "reason", "released"),
    [
        (Code.INTERNAL, "INTERNAL", True),
        (Code.INTERNAL, "", True),
        (Code.UNKNOWN, "", True),
        (Code.CANCELLED, "", True),
        (Code.RESOURCE_EXHAUSTED, "", True),
        (Code.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED", False),
        (Code.ALREADY_EXISTS, "RESERVATION_CONFLICT", False),
        (Code.INVALID_ARGUMENT, "INVALID_RESERVATION", False),
    ],
)
async def test_what_may_be_held_behind_an_error_is_released_and_after_a_word_nothing(
    code: grpc.StatusCode, reason: str, released: bool
) -> None:
    world = World()
    world.billing.answer = refusal(code, reason)
    with pytest.raises((BudgetUnavailableError, BudgetExhaustedError)):
        await world.admit()
    assert world.billing.released == (["r1"] if released else [])
