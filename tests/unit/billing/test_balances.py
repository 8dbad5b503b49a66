"""Balances: fundings as entries, once per id; charges take grants first; all of it is verified."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from billing.errors import FundingConflictError, FundingRefusedError, TenantUnknownError
from billing.funding import FundingAsk, FundingKind
from billing.invoice import invoice_of
from billing.ledger_schema import postings
from billing.period import Period
from billing.report import UsageQuery, usage_rows
from billing.usage import TenantId, UsageEvent
from billing.wallet import GRANTS_MAX, Wallet, wallet_from_text
from billing.wallet_rows import stored_wallets
from tests.unit.billing.test_corrections import OWED, ask

Events = Callable[..., UsageEvent]
Till = Any
DAY = 86_400 * 10**9


def funding(kind: str, amount: str, **changes: Any) -> FundingAsk:
    fields: dict[str, Any] = {
        "funding_id": f"{kind}-{amount}",
        "tenant_id": "acme",
        "currency": "CNY",
        "reason": "an order",
        "operator": "ann",
    }
    return FundingAsk(kind=FundingKind(kind), amount=Decimal(amount), **(fields | changes))


def wallet(till: Till, currency: str = "CNY") -> Wallet:
    found: Wallet | None = till.store.read(stored_wallets).get("acme", currency)
    assert found is not None
    return found


def test_what_is_paid_in_and_granted_is_there_and_its_entries_balance(till: Till) -> None:
    first = till.ledger.fund(funding("top_up", "10")).result(30)
    second = till.ledger.fund(funding("grant", "2.5")).result(30)
    assert (first.position, second.position) == (1, 2)
    assert wallet(till).available_at(till.clock.now_ns) == Decimal("12.5")
    lines = till.store.read(lambda c: c.execute(select(postings)).all())
    assert [(line.account, line.amount) for line in lines] == [
        ("payments/received", "10"),
        ("prepaid/acme", "-10"),
        ("expense/grants", "2.5"),
        ("granted/acme", "-2.5"),
    ]
    found = till.verify()
    assert (found.problem, found.entry_count, found.posting_count) == ("", 2, 4)


def test_a_charge_takes_of_grants_first_the_one_that_expires_first(
    till: Till, usage_event: Events
) -> None:
    now = till.clock.now_ns
    till.ledger.fund(funding("top_up", "1")).result(30)
    till.ledger.fund(funding("grant", "0.0001")).result(30)
    till.ledger.fund(funding("grant", "0.00002", expires_ns=now + DAY)).result(30)
    till.record(usage_event("r1"))
    left = wallet(till)
    assert [(g.position, g.left) for g in left.grants] == []
    assert left.prepaid == 1 + Decimal("0.00012") - OWED
    assert till.verify().problem == ""


def test_an_expired_grant_pays_for_what_ended_before_and_nothing_after(
    till: Till, usage_event: Events
) -> None:
    now = till.clock.now_ns
    till.ledger.fund(funding("grant", "1", expires_ns=now + 10)).result(30)
    till.clock.now_ns += 3 * DAY
    till.record(usage_event("late", end_time_ns=now + 9))
    assert (wallet(till).prepaid, wallet(till).granted_at(now)) == (0, 1 - OWED)
    assert wallet(till).available_at(till.clock.now_ns) == 0
    till.record(usage_event("after", end_time_ns=now + 10))
    assert wallet(till).prepaid == -OWED
    assert till.verify().problem == ""


def test_a_wallet_begins_with_what_is_first_put_in(till: Till, usage_event: Events) -> None:
    till.record(usage_event("before"))
    till.ledger.fund(funding("top_up", "1")).result(30)
    till.ledger.correct(ask("credit", "before")).result(30)
    assert wallet(till).prepaid == 1
    till.record(usage_event("r1"))
    till.ledger.correct(ask("reverse", "r1")).result(30)
    assert wallet(till).prepaid == 1
    till.ledger.correct(ask("charge", "r1")).result(30)
    assert wallet(till).prepaid == 1 - Decimal("0.0001")
    assert till.verify().problem == ""


def test_other_tenants_and_currencies_are_wallets_of_their_own(
    till: Till, usage_event: Events
) -> None:
    till.ledger.fund(funding("top_up", "5", currency="EUR")).result(30)
    till.ledger.fund(funding("top_up", "6", tenant_id="beta")).result(30)
    till.record(usage_event("r1"))
    assert wallet(till, "EUR").prepaid == 5
    found = till.store.read(lambda c: stored_wallets(c, "beta"))
    assert [key for key, _ in found.items()] == [("beta", "CNY")]
    assert till.verify().problem == ""


def test_a_funding_happens_once_and_another_under_its_id_is_refused(till: Till) -> None:
    first = till.ledger.fund(funding("top_up", "10")).result(30)
    again = till.ledger.fund(replace(funding("top_up", "10"), operator="bob")).result(30)
    assert (again.position, again.again, again.funding) == (1, True, first.funding)
    assert wallet(till).prepaid == 10
    for other in (
        funding("top_up", "11", funding_id="top_up-10"),
        funding("grant", "10", funding_id="top_up-10"),
        funding("top_up", "10", tenant_id="beta"),
    ):
        with pytest.raises(FundingConflictError):
            till.ledger.fund(other).result(30)
    assert till.verify().entry_count == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tenant_id": ""}, "tenant_id"),
        ({"reason": "a\nb"}, "reason"),
        ({"operator": ""}, "operator"),
        ({"funding_id": "x" * 1025}, "funding_id"),
        ({"currency": ""}, "currency"),
        ({"amount": Decimal(0)}, "above 0"),
        ({"expires_ns": 2**62}, "only a grant"),
        ({"kind": FundingKind.GRANT, "expires_ns": 5}, "expired already"),
        ({"kind": FundingKind.GRANT, "expires_ns": 2**63}, "2262"),
        ({"kind": FundingKind.WITHDRAWAL}, "0 is left"),
    ],
)
def test_what_says_too_little_or_does_not_fit_is_refused_and_writes_nothing(
    till: Till, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(FundingRefusedError, match=says):
        till.ledger.fund(replace(funding("top_up", "10"), **changes)).result(30)
    assert till.verify().entry_count == 0
    assert till.ledger.fund(funding("top_up", "1")).result(30).position == 1


def test_no_more_is_taken_out_than_was_paid_in_and_is_left(till: Till, usage_event: Events) -> None:
    till.ledger.fund(funding("grant", "100")).result(30)
    till.ledger.fund(funding("top_up", "3")).result(30)
    with pytest.raises(FundingRefusedError, match="3 is left"):
        till.ledger.fund(funding("withdrawal", "4")).result(30)
    till.ledger.fund(funding("withdrawal", "3")).result(30)
    assert (wallet(till).prepaid, wallet(till).available_at(0)) == (0, 100)
    assert till.verify().problem == ""


def test_a_wallet_has_so_many_grants_and_one_more_is_refused(till: Till) -> None:
    for number in range(GRANTS_MAX):
        till.ledger.fund(funding("grant", "1", funding_id=str(number))).result(30)
    with pytest.raises(FundingRefusedError, match="64 grants"):
        till.ledger.fund(funding("grant", "1", funding_id="one more")).result(30)
    assert till.verify().problem == ""


def test_balances_are_there_after_a_restart_and_go_on(
    open_till: Callable[..., Till], usage_event: Events
) -> None:
    till = open_till()
    till.ledger.fund(funding("top_up", "1")).result(30)
    till.record(usage_event("r1"))
    till.close()
    again = open_till()
    again.record(usage_event("r2"))
    assert wallet(again).prepaid == 1 - 2 * OWED
    assert again.verify().problem == ""


def test_fundings_are_in_no_report_and_no_invoice(till: Till, usage_event: Events) -> None:
    till.ledger.fund(funding("top_up", "1")).result(30)
    with pytest.raises(TenantUnknownError):
        till.store.read(lambda c: invoice_of(c, TenantId("acme"), Period()))
    till.record(usage_event("r1"))
    rows = till.store.read(lambda c: usage_rows(c, UsageQuery()))
    assert [(row.request_count, row.amount) for row in rows] == [(1, OWED)]
    invoice = till.store.read(lambda c: invoice_of(c, TenantId("acme"), Period()))
    assert (invoice.request_count, invoice.corrections) == (1, ())


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE wallets SET state = replace(state, \'"prepaid":"\', \'"prepaid":"9\')',
        "UPDATE wallets SET state = 'nonsense'",
        "DELETE FROM wallets",
        'INSERT INTO wallets VALUES (\'umbra\', \'CNY\', \'{"full":"1","full_position":1,'
        '"grants":[],"prepaid":"1","start":1}\')',
        'UPDATE entries SET event = replace(event, \'"amount":"1"\', \'"amount":"8"\')'
        " WHERE kind = 'top_up'",
        "UPDATE entries SET kind = 'grant' WHERE kind = 'top_up'",
        "UPDATE entries SET tenant_id = 'umbra' WHERE kind = 'top_up'",
        "UPDATE postings SET amount = '8' WHERE account = 'payments/received'",
        "DELETE FROM postings WHERE account = 'prepaid/acme'",
    ],
)
def test_a_changed_balance_is_found(till: Till, usage_event: Events, statement: str) -> None:
    till.ledger.fund(funding("top_up", "1")).result(30)
    till.record(usage_event("r1"))
    assert till.verify().problem == ""
    till.alter(statement)
    assert till.verify().problem != ""


def test_a_wallet_survives_its_text() -> None:
    made = Wallet(3).topped_up(Decimal("1.50"), 3, 0).granted(Decimal("0.1"), None, 4, 0)
    made = made.granted(Decimal("7"), 99, 5, 0).charged(Decimal("0.7"), 98)
    assert [grant.expires_ns for grant in made.grants] == [99, None]
    assert wallet_from_text(made.text) == made
    assert (made.full, made.full_position) == (Decimal("8.6"), 5)
