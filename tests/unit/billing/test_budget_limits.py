"""Limits by the day and month, alerts once each, limits on rates, and who has which, on a real
ledger; and all of it again after a restart.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from billing.budget import Budget, BudgetSet, Scope, SpendLimit
from billing.budget_period import PeriodKind
from billing.budget_status import budget_statuses, newest_alerts, with_spent
from billing.correction import CorrectionAsk, CorrectionKind
from billing.errors import (
    BillingError,
    BudgetConflictError,
    BudgetExhaustedError,
    BudgetRefusedError,
    PriceUnknownError,
    QuotaExceededError,
)
from billing.period import Period
from billing.price_book_file import parse_price_book
from tests.unit.billing.reserving import (
    BOOK,
    DAY,
    SECOND,
    Events,
    Till,
    budget,
    limit,
    release,
    reserve,
)
from tests.unit.billing.test_balances import funding


@pytest.fixture
def till(open_till: Callable[..., Till]) -> Till:
    return open_till(parse_price_book(BOOK, "test"))


def test_limits_on_rates_are_no_wider_after_a_restart(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    book = parse_price_book(BOOK, "test")
    till = open_till(book)
    budget(till, requests_per_minute=3, tokens_per_minute=300)
    till.record(usage_event("a", hit=100, miss=20, output=10))
    assert reserve(till, "r1").held
    till.close()
    again = open_till(book)
    # 40 weigh those that have ended, 110 the one under way.
    assert reserve(again, "r2", 141, 10).metadata["quota"] == "tokens_per_minute"
    assert reserve(again, "r2", 140, 10).held
    assert reserve(again, "r3", 1, 1).metadata["quota"] == "requests_per_minute"


def test_the_first_event_or_release_after_a_restart_counts_like_any_other(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    book = parse_price_book(BOOK, "test")
    till = open_till(book)
    budget(till, requests_per_minute=3, tokens_per_minute=300)
    assert reserve(till, "r1", 90, 10).held
    till.close()
    again = open_till(book)
    again.record(usage_event("r1", hit=0, miss=80, output=10))
    # 90 weighs the one that has ended.
    assert reserve(again, "r2", 201, 10).metadata["quota"] == "tokens_per_minute"
    assert reserve(again, "r2", 90, 10).held
    assert reserve(again, "r3", 90, 10).held
    assert reserve(again, "r4", 1, 1).metadata["quota"] == "requests_per_minute"
    again.close()
    third = open_till(book)
    assert release(third, "r2")
    assert reserve(third, "r4", 101, 10).metadata["quota"] == "tokens_per_minute"
    assert reserve(third, "r4", 100, 10).held
    assert reserve(third, "r5", 1, 1).metadata["quota"] == "requests_per_minute"


def test_a_limit_of_a_day_counts_what_is_spent_and_held_and_begins_anew(
    till: Till, usage_event: Events
) -> None:
    scope = Scope("acme", "search")
    budget(till, scope, limit=limit("300", zone="Asia/Shanghai"))
    now = till.clock.now_ns
    till.record(usage_event("before", project_id="search", hit=0, miss=100, output=0))
    assert reserve(till, "r1", project_id="search").held
    refused = reserve(till, "r2", project_id="search")
    assert isinstance(refused, BudgetExhaustedError)
    # 08:00 UTC is 16:00 in Shanghai: eight hours are left.
    assert refused.metadata["retry_after_seconds"] == str(8 * 3600)
    assert (refused.metadata["spent"], refused.metadata["held"]) == ("100", "120")
    assert reserve(till, "other", project_id="ads").held is False
    till.record(usage_event("r1", project_id="search", hit=0, miss=1, output=0))
    till.clock.now_ns = now + 8 * 3600 * SECOND
    assert reserve(till, "r3", 200, project_id="search").held


@pytest.mark.parametrize("text", [BOOK, BOOK.replace("quota =", 'request = "0"\nquota =')])
def test_what_a_period_has_spent_is_known_whoever_knew_it(
    open_till: Callable[..., Till], usage_event: Events, text: str
) -> None:
    """Of sums, of postings where these have no price, of rows that are kept; with corrections."""
    book = parse_price_book(text, "test")
    till = open_till(book)
    for number, key in enumerate(("k1", "k2")):
        event = usage_event(f"a{number}", key_id=key, hit=0, miss=100, output=0)
        till.record(event)
    credit = CorrectionAsk("c", CorrectionKind("credit"), "a0", "test", "ann", Decimal(30))
    till.ledger.correct(credit).result(30)
    scope = Scope("acme", key_id="k1")
    budget(till, scope, limit=limit("300"))
    assert reserve(till, "r1", 231, 0, key_id="k1").metadata["spent"] == "70"
    till.record(usage_event("b", key_id="k1", hit=0, miss=10, output=0))
    till.ledger.correct(replace(credit, correction_id="d", amount=Decimal(20))).result(30)
    till.close()
    again = open_till(book)
    assert reserve(again, "r1", 241, 0, key_id="k1").metadata["spent"] == "60"
    # Another limit looks the day up anew.
    budget(again, scope)
    again.record(usage_event("c", key_id="k1", hit=0, miss=5, output=0))
    budget(again, scope, limit=limit("200"))
    assert reserve(again, "r1", 241, 0, key_id="k1").metadata["spent"] == "65"


def test_limits_of_tenant_project_and_key_all_hold(till: Till) -> None:
    budget(till, limit=limit("500", period=PeriodKind.MONTH))
    budget(till, Scope("acme", key_id="k1"), limit=limit("200"))
    assert reserve(till, "r1", key_id="k1", project_id="any").held
    refused = reserve(till, "r2", key_id="k1")
    assert isinstance(refused, BudgetExhaustedError)
    assert refused.metadata["scope"] == "acme key k1"
    assert all(reserve(till, f"t{n}").held for n in range(3))
    refused = reserve(till, "r3", key_id="k2")
    assert (type(refused), refused.metadata["scope"]) == (BudgetExhaustedError, "acme")


def test_a_soft_limit_stops_nothing_and_alerts_once_at_each_threshold(
    till: Till, usage_event: Events
) -> None:
    budget(till, limit=limit("100", hard=False), alert_percents=(50, 80, 120))
    for number in range(3):
        till.record(usage_event(f"a{number}", hit=0, miss=30, output=0))
    assert [alert.percent for alert in till.heard.alerts] == [50, 80]
    assert reserve(till, "r1").held
    till.record(usage_event("b", hit=0, miss=31, output=0))
    till.record(usage_event("c", hit=0, miss=31, output=0))
    assert [alert.percent for alert in till.heard.alerts] == [50, 80, 120]
    till.clock.now_ns += DAY
    till.record(usage_event("d", hit=0, miss=50, output=0, end_time_ns=till.clock.now_ns))
    assert [alert.percent for alert in till.heard.alerts] == [50, 80, 120, 50]


def test_an_alert_is_not_given_again_after_a_restart(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    book = parse_price_book(BOOK, "test")
    till = open_till(book)
    budget(till, limit=limit("100", hard=False), alert_percents=(50, 90))
    till.record(usage_event("a", hit=0, miss=60, output=0))
    till.close()
    again = open_till(book)
    again.record(usage_event("b", hit=0, miss=31, output=0))
    assert [alert.percent for alert in again.heard.alerts] == [90]
    found = again.store.read(lambda c: newest_alerts(c, "", "", Period()))
    assert [alert.percent for alert in found] == [90, 50]


def test_a_balance_alerts_by_what_it_was_filled_to(till: Till, usage_event: Events) -> None:
    budget(till, balance_required=True, alert_percents=(50, 95))
    till.ledger.fund(funding("top_up", "100")).result(30)
    till.record(usage_event("a", hit=0, miss=60, output=0))
    till.ledger.fund(funding("top_up", "60")).result(30)
    till.record(usage_event("b", hit=0, miss=40, output=0))
    assert [alert.percent for alert in till.heard.alerts] == [50]
    till.record(usage_event("c", hit=0, miss=10, output=0))
    assert [(alert.percent, alert.amount) for alert in till.heard.alerts] == [(50, 40), (50, 50)]


def test_requests_a_minute_come_again_when_it_is_said(till: Till) -> None:
    budget(till, requests_per_minute=2)
    assert reserve(till, "r1").held
    assert reserve(till, "r2").held
    refused = reserve(till, "r3")
    assert isinstance(refused, QuotaExceededError)
    assert refused.metadata["quota"] == "requests_per_minute"
    assert refused.metadata["retry_after_seconds"] == "30"
    till.clock.now_ns += 30 * SECOND - 1
    assert isinstance(reserve(till, "r3"), QuotaExceededError)
    till.clock.now_ns += 1
    assert reserve(till, "r3").held


def test_hits_weigh_less_than_misses_once_the_request_has_ended(
    till: Till, usage_event: Events
) -> None:
    budget(till, tokens_per_minute=200)
    assert reserve(till, "r1").held
    assert isinstance(reserve(till, "r2"), QuotaExceededError)
    till.record(usage_event("r1", hit=100, miss=0, output=10))
    assert reserve(till, "r2", 160, 20).held


def test_what_is_larger_than_a_limit_passes_when_nothing_else_has_used_it(till: Till) -> None:
    budget(till, tokens_per_minute=50, tokens_per_day=60)
    assert reserve(till, "large").held
    refused = reserve(till, "small", 1, 1)
    assert refused.metadata["quota"] == "tokens_per_minute"
    # 110 of 50: 60 in debt, and 2 are needed.
    assert refused.metadata["retry_after_seconds"] == str(round(62 / 50 * 60 + 0.49))
    till.clock.now_ns += 200 * SECOND
    assert reserve(till, "small", 1, 1).metadata["quota"] == "tokens_per_day"


def test_a_day_of_tokens_is_rebuilt_from_the_ledger(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    book = parse_price_book(BOOK, "test")
    till = open_till(book)
    budget(till, Scope("acme", "search"), tokens_per_day=100)
    till.record(usage_event("a", project_id="search", hit=100, miss=50, output=10))
    till.close()
    again = open_till(book)
    assert reserve(again, "r1", 25, 5, project_id="search").held
    assert reserve(again, "r2", 1, 0, project_id="search").metadata["quota"] == "tokens_per_day"


def test_the_star_is_for_each_tenant_without_a_budget_of_its_own(till: Till) -> None:
    budget(till, Scope("*"), requests_per_minute=1)
    budget(till, Scope("acme"), requests_per_minute=2)
    for tenant, expected in (("acme", 2), ("beta", 1), ("gamma", 1)):
        answers = [reserve(till, f"{tenant}{n}", tenant_id=tenant) for n in range(3)]
        assert sum(not isinstance(each, BillingError) for each in answers) == expected


def test_money_limits_let_in_nothing_that_has_no_price(till: Till) -> None:
    budget(till, balance_required=True)
    till.ledger.fund(funding("top_up", "200")).result(30)
    assert isinstance(reserve(till, "r1", model="unheard-of"), PriceUnknownError)
    assert reserve(till, "r2", model="free-one").hold.amount == 0


def test_a_limit_in_another_currency_lets_in_nothing(till: Till) -> None:
    said = SpendLimit(Decimal(5), "EUR", PeriodKind.MONTH)
    budget(till, limit=said)
    refused = reserve(till, "r1")
    assert isinstance(refused, BudgetExhaustedError)
    assert "priced in CNY" in str(refused)


def test_a_budget_is_taken_away_by_one_that_says_nothing(till: Till) -> None:
    budget(till, requests_per_minute=1)
    assert reserve(till, "r1").held
    assert isinstance(reserve(till, "r2"), QuotaExceededError)
    budget(till)
    assert reserve(till, "r2").held is False
    assert till.verify().problem == ""


def test_a_budget_is_set_once_by_its_id(till: Till) -> None:
    made = BudgetSet("one", Budget(Scope("acme"), requests_per_minute=1), "test", "ann", 0)
    first = till.ledger.set_budget(made).result(30)
    again = till.ledger.set_budget(replace(made, operator="bob")).result(30)
    assert (again.position, again.again) == (first.position, True)
    other = replace(made, budget=Budget(Scope("acme"), requests_per_minute=2))
    with pytest.raises(BudgetConflictError):
        till.ledger.set_budget(other).result(30)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (Budget(Scope("")), "tenant_id"),
        (Budget(Scope("a", "p", "k"), requests_per_minute=1), "not of both"),
        (Budget(Scope("*", "p"), requests_per_minute=1), "of one tenant"),
        (Budget(Scope("a", "p"), balance_required=True), "balance"),
        (Budget(Scope("a"), requests_per_minute=0), "requests_per_minute"),
        (Budget(Scope("a"), limit=limit("1", zone="Moon/Base")), "time zone"),
        (Budget(Scope("a"), alert_percents=(80, 50)), "rising"),
        (Budget(Scope("a", "p"), alert_percents=(80,)), "need a limit"),
        (Budget(Scope("a\n"), requests_per_minute=1), "printable"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(till: Till, made: Budget, says: str) -> None:
    with pytest.raises(BudgetRefusedError, match=says):
        till.ledger.set_budget(BudgetSet("x", made, "test", "ann", 0)).result(30)
    assert till.ledger.head.position == 0


def test_how_far_budgets_are_used_is_told(till: Till, usage_event: Events) -> None:
    budget(till, Scope("acme", "search"), limit=limit("300"))
    till.record(usage_event("a", project_id="search", hit=0, miss=100, output=0))
    reserve(till, "r1", project_id="search")
    found, omitted = till.ledger.decide(
        lambda _, standing, now: budget_statuses(standing, "acme", "", now)
    ).result(30)
    found = till.store.read(lambda c: [with_spent(c, each) for each in found])
    assert [(s.spent, s.held, s.held_requests) for s in found] == [(100, 120, 1)]
    assert omitted == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET event = replace(event, '\"requests_per_minute\":1', "
        "'\"requests_per_minute\":9') WHERE kind = 'budget'",
        "UPDATE entries SET tenant_id = 'umbra' WHERE kind = 'budget'",
        "UPDATE entries SET kind = 'correction' WHERE kind = 'budget'",
        "UPDATE entries SET recorded_time_ns = 7 WHERE kind = 'budget'",
    ],
)
def test_a_changed_budget_is_found(till: Till, statement: str) -> None:
    budget(till, requests_per_minute=1)
    till.alter(statement)
    assert till.verify().problem != ""
