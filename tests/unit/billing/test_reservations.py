"""Reservations on a real ledger: what is held, what settles it, what is refused and why; and all
of it again after a restart.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from billing.budget import Budget, BudgetSet, Scope
from billing.budget_status import newest_alerts
from billing.correction import CorrectionAsk, CorrectionKind
from billing.errors import (
    BudgetRefusedError,
    EventUnknownError,
    FundingRefusedError,
    InsufficientBalanceError,
    InvalidReservationError,
    ReservationConflictError,
)
from billing.period import Period
from billing.price_book_file import parse_price_book
from billing.reservations import Reservations, check_ask
from billing.standing_rows import stored_standing
from tests.unit.billing.reserving import (
    BOOK,
    SECOND,
    Events,
    Till,
    asked,
    budget,
    held,
    release,
    reserve,
)
from tests.unit.billing.test_balances import funding, wallet


@pytest.fixture
def till(open_till: Callable[..., Till]) -> Till:
    return open_till(parse_price_book(BOOK, "test"))


def test_without_a_budget_everything_is_let_in_and_nothing_held(till: Till) -> None:
    made = reserve(till, "r1")
    assert (made.held, made.again) == (False, False)
    assert till.store.read(stored_standing).holds.get("r1") is None


def test_what_a_request_may_cost_is_held_until_its_event_settles_it(
    till: Till, usage_event: Events
) -> None:
    budget(till, balance_required=True)
    assert isinstance(reserve(till, "early"), InsufficientBalanceError)
    till.ledger.fund(funding("top_up", "200")).result(30)
    made = reserve(till, "r1")
    assert (made.hold.amount, made.hold.currency, held(till)) == (120, "CNY", 120)
    refused = reserve(till, "r2")
    assert isinstance(refused, InsufficientBalanceError)
    assert refused.metadata["balance"] == "200"
    assert refused.metadata["held"] == refused.metadata["cost"] == "120"
    till.record(usage_event("r1", hit=50, miss=50, output=1))
    assert (held(till), wallet(till).prepaid) == (0, 200 - Decimal(57))
    assert reserve(till, "r2").held
    assert till.verify().problem == ""


def test_a_reservation_is_one_however_often_it_is_asked_for(
    till: Till, usage_event: Events
) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "200")).result(30)
    first = reserve(till, "r1")
    again = reserve(till, "r1")
    assert (again.again, again.hold, held(till)) == (True, first.hold, 120)
    assert isinstance(reserve(till, "r1", 101), ReservationConflictError)
    till.record(usage_event("r1", miss=1, output=1))
    assert isinstance(reserve(till, "r1"), ReservationConflictError)


def test_what_was_not_served_is_free_again(till: Till) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "120")).result(30)
    assert reserve(till, "r1").held
    assert (release(till, "r1"), release(till, "r1"), release(till, "never")) == (
        True,
        False,
        False,
    )
    assert (held(till), reserve(till, "r2").held) == (0, True)


def test_a_hold_ends_by_itself_and_a_late_event_is_charged_all_the_same(
    till: Till, usage_event: Events
) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "120")).result(30)
    reserve(till, "r1")
    till.clock.now_ns += (60 + 899) * SECOND
    assert isinstance(reserve(till, "r2"), InsufficientBalanceError)
    till.clock.now_ns += SECOND
    assert held(till) == 0
    assert reserve(till, "r2").held
    till.record(usage_event("r1", miss=100, hit=0, output=10))
    assert (wallet(till).prepaid, held(till)) == (0, 120)
    till.record(usage_event("r2", miss=100, hit=0, output=10))
    assert wallet(till).prepaid == -120
    alerts = till.store.read(lambda c: newest_alerts(c, "acme", "", Period()))
    assert [(a.kind, a.percent, a.amount) for a in alerts] == [("overdrawn", 100, "-120")]
    assert [alert.kind.value for alert in till.heard.alerts] == ["overdrawn"]
    assert till.verify().problem == ""


def test_a_grant_that_ends_before_the_request_may_is_not_counted_for_it(till: Till) -> None:
    budget(till, balance_required=True)
    end = till.clock.now_ns + 30 * SECOND
    till.ledger.fund(funding("grant", "500", expires_ns=end)).result(30)
    assert isinstance(reserve(till, "long"), InsufficientBalanceError)
    assert reserve(till, "short", deadline_ns=end - 1).held


def test_what_is_held_is_not_paid_back(till: Till) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "200")).result(30)
    reserve(till, "r1")
    with pytest.raises(FundingRefusedError, match="under way"):
        till.ledger.fund(funding("withdrawal", "81")).result(30)
    till.ledger.fund(funding("withdrawal", "80")).result(30)


def test_many_at_once_never_hold_more_than_there_is(till: Till) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "1000")).result(30)
    reservations = Reservations(till.ledger)

    def one(number: int) -> bool:
        try:
            return reservations.reserve(asked(till, f"r{number}")).result(30).held
        except InsufficientBalanceError:
            return False

    with ThreadPoolExecutor(16) as pool:
        let_in = sum(pool.map(one, range(100)))
    assert (let_in, held(till)) == (8, 960)


def test_holds_are_there_after_a_restart(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    book = parse_price_book(BOOK, "test")
    till = open_till(book)
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "200")).result(30)
    first = reserve(till, "r1")
    till.close()
    again = open_till(book)
    assert reserve(again, "r1").hold == first.hold
    assert isinstance(reserve(again, "r2"), InsufficientBalanceError)
    again.record(usage_event("r1", miss=50, hit=0, output=10))
    again.close()
    third = open_till(book)
    assert held(third) == 0
    assert reserve(third, "r2").held


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": -1},
        {"output": 10**11},
        {"tenant_id": ""},
        {"model": ""},
        {"project_id": "a\nb"},
        {"deadline_ns": 2**62},
        {"deadline_ns": 0},
    ],
)
def test_a_reservation_that_no_event_can_settle_is_refused(
    till: Till, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidReservationError):
        check_ask(asked(till, "r1", **changes), till.clock.now_ns)
    check_ask(asked(till, "r1"), till.clock.now_ns)


@pytest.mark.parametrize("late_ns", [0, 1, SECOND, 3600 * SECOND])
def test_a_reservation_whose_deadline_is_past_is_refused(till: Till, late_ns: int) -> None:
    late = asked(till, "r1", deadline_ns=till.clock.now_ns - late_ns)
    with pytest.raises(InvalidReservationError):
        check_ask(late, till.clock.now_ns)
    check_ask(asked(till, "r1", deadline_ns=till.clock.now_ns + 1), till.clock.now_ns)


def test_what_could_not_be_written_is_not_held(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "120")).result(30)
    import billing.ledger as module

    def broken(*_: Any) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(module, "keep_changes", broken)
        assert reserve(till, "r1").reason == "LEDGER_UNAVAILABLE"
    assert held(till) == 0
    assert reserve(till, "r2").held


def test_a_refusal_reads_nothing_anew_and_forgets_nothing(
    till: Till, usage_event: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "300")).result(30)
    assert reserve(till, "r1").held
    till.clock.now_ns += 2000 * SECOND  # r1's hold ends by itself
    assert reserve(till, "r2").held
    import billing.ledger as module

    loads = []

    def counted(connection: Any) -> Any:
        loads.append(1)
        return stored_standing(connection)

    monkeypatch.setattr(module, "stored_standing", counted)
    unknown = CorrectionAsk("c1", CorrectionKind.REVERSE, "never", "test", "ann")
    with pytest.raises(EventUnknownError):
        till.ledger.correct(unknown).result(30)
    with pytest.raises(FundingRefusedError):
        till.ledger.fund(funding("withdrawal", "181")).result(30)
    with pytest.raises(BudgetRefusedError):
        till.ledger.set_budget(BudgetSet("b9", Budget(Scope("")), "test", "ann", 0)).result(30)
    assert loads == []
    assert (held(till), reserve(till, "r3", 161).reason) == (120, "INSUFFICIENT_BALANCE")
    till.record(usage_event("r2", hit=0, miss=50, output=0))
    assert list(till.store.read(stored_standing).holds._holds) == []
    assert (wallet(till).prepaid, till.verify().problem) == (250, "")


def test_a_refusal_after_holds_ended_still_lets_them_end_in_the_database(till: Till) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "300")).result(30)
    assert reserve(till, "r1").held
    till.clock.now_ns += 2000 * SECOND
    with pytest.raises(FundingRefusedError):
        till.ledger.fund(funding("withdrawal", "301")).result(30)
    assert reserve(till, "r2").held
    holds = till.store.read(stored_standing).holds
    assert (holds.get("r1"), len(holds)) == (None, 1)
