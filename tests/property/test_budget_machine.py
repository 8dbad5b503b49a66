"""Reservations, events, fundings, restarts and time in any order, against a model: what went
through reservations never passes a balance or a limit, nothing stays held, and balances are the
model's.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from billing.budget import Budget, BudgetSet, Scope, SpendLimit
from billing.budget_period import PeriodKind
from billing.cost_bound import RequestShape
from billing.errors import BillingError, BudgetExhaustedError, InsufficientBalanceError
from billing.funding import FundingAsk, FundingKind
from billing.hold import ReserveAsk
from billing.ledger import Ledger
from billing.ledger_sqlite import SqliteStore
from billing.ledger_verify import verify_ledger
from billing.meter import RecordStatus, Submission
from billing.metrics import BillingMetrics
from billing.price_book_file import parse_price_book
from billing.reservations import Reservations
from billing.standing_rows import held_money, stored_standing
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent

SECOND = 10**9
START = 1_800_000_000 * SECOND
GRACE = 60
TENANTS = ("acme", "beta")
WHO = st.sampled_from(["acme", "acme", "acme", "beta"])
PROJECT_LIMIT = Decimal(300)

BOOK = parse_price_book(
    """
format = 1
[[versions]]
name = "one a token"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "*"
hit = "100000"
miss = "1000000"
output = "2000000"
""",
    "test",
)


@dataclass
class Money:
    """A tenant's, told another way: pots with an end, the one without end last."""

    started: bool = False
    pots: list[list[Any]] = field(default_factory=list)
    """[end or None, order, left]."""
    prepaid: Decimal = Decimal(0)

    def charge(self, amount: Decimal, end_ns: int) -> None:
        if not self.started:
            return
        open_ = [pot for pot in self.pots if pot[0] is None or pot[0] > end_ns]
        open_.sort(key=lambda pot: (pot[0] is None, pot[0] or 0, pot[1]))
        for pot in open_:
            part = min(amount, pot[2])
            pot[2] -= part
            amount -= part
        self.prepaid -= amount

    def available(self, now_ns: int) -> Decimal:
        pots = sum(pot[2] for pot in self.pots if pot[0] is None or pot[0] > now_ns)
        return self.prepaid + pots


class BudgetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="kvtier-budgets-"))
        self.now = START
        self.money = {tenant: Money() for tenant in TENANTS}
        self.running: dict[str, ReserveAsk] = {}
        self.pending: list[UsageEvent] = []
        self.sent: list[UsageEvent] = []
        self.number = 0
        self.unreserved: set[str] = set()
        """Tenants with a charge that no hold of its size stood for."""
        self.loose = False
        """Whether there are such charges at all."""
        self.asks: dict[str, ReserveAsk] = {}
        self.open()

    def open(self) -> None:
        self.store = SqliteStore(self.directory)
        self.ledger = Ledger(
            self.store, BOOK, lambda: self.now, BillingMetrics(), hold_grace_seconds=GRACE
        )
        self.reservations = Reservations(self.ledger)

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    @initialize(loose=st.booleans())
    def budgets(self, loose: bool) -> None:
        self.loose = loose
        for tenant in TENANTS:
            self.set(Budget(Scope(tenant), balance_required=True, alert_percents=(50, 100)))
        limit = SpendLimit(PROJECT_LIMIT, "CNY", PeriodKind.DAY, "Asia/Shanghai")
        self.set(Budget(Scope("acme", "search"), limit=limit, alert_percents=(50, 80)))

    def set(self, budget: Budget) -> None:
        self.ledger.set_budget(BudgetSet(self.name(), budget, "test", "ann", 0)).result(30)

    def name(self) -> str:
        self.number += 1
        return f"n{self.number}"

    @rule(
        tenant=WHO,
        amount=st.integers(1, 150),
        lasts=st.sampled_from([None, 7, 90, 400, 40_000]),
        paid=st.booleans(),
    )
    def fund(self, tenant: str, amount: int, lasts: int | None, paid: bool) -> None:
        name, money = self.name(), self.money[tenant]
        kind = FundingKind.TOP_UP if paid else FundingKind.GRANT
        end = None if paid or lasts is None else self.now + lasts * SECOND
        ask = FundingAsk(name, kind, tenant, Decimal(amount), "CNY", "test", "ann", end)
        for again in (False, True):
            assert self.ledger.fund(ask).result(30).again == again
        money.started = True
        if paid:
            money.prepaid += amount
        else:
            money.pots.append([end, self.number, Decimal(amount)])

    @rule(tenant=WHO, amount=st.integers(1, 150))
    def withdraw(self, tenant: str, amount: int) -> None:
        ask = FundingAsk(
            self.name(), FundingKind.WITHDRAWAL, tenant, Decimal(amount), "CNY", "test", "ann"
        )
        try:
            self.ledger.fund(ask).result(30)
        except BillingError:
            return
        self.money[tenant].prepaid -= amount

    @rule(
        tenant=WHO,
        project=st.sampled_from(["", "search"]),
        prompt=st.integers(0, 120),
        output=st.integers(1, 60),
        seconds=st.integers(1, 600),
    )
    def reserve(self, tenant: str, project: str, prompt: int, output: int, seconds: int) -> None:
        deadline = self.now + seconds * SECOND
        shape = RequestShape("demo", prompt, output)
        ask = ReserveAsk(self.name(), tenant, project, "", shape, deadline)
        try:
            first = self.reservations.reserve(ask).result(30)
        except (InsufficientBalanceError, BudgetExhaustedError):
            return
        assert first.hold.amount == prompt + 2 * output
        assert self.reservations.reserve(ask).result(30).again
        self.running[ask.request_id] = self.asks[ask.request_id] = ask

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """The request is served; its event is on its way."""
        name = data.draw(st.sampled_from(sorted(self.running)))
        ask = self.running.pop(name)
        whole = data.draw(st.booleans())
        prompt, output = ask.shape.prompt_tokens, ask.shape.completion_tokens
        hit = 0
        if not whole:
            prompt = data.draw(st.integers(0, prompt))
            hit = data.draw(st.integers(0, prompt))
            output = data.draw(st.integers(0, output))
        end = min(max(self.now, START), ask.deadline_ns)
        self.pending.append(
            self.event(name, ask.tenant_id, ask.project_id, hit, prompt, output, end)
        )

    @precondition(lambda self: self.loose)
    @rule(tenant=WHO, miss=st.integers(1, 50))
    def end_without_a_reservation(self, tenant: str, miss: int) -> None:
        self.pending.append(self.event(self.name(), tenant, "", 0, miss, 0, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        ask = self.running.pop(name)
        expired = ask.deadline_ns + GRACE * SECOND <= self.now
        assert self.reservations.release(name).result(30) is not expired
        assert self.reservations.release(name).result(30) is False

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.pending), min_size=1, unique_by=id))
        self.send(some)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.sent))
        (outcome,) = self.ledger.record([Submission(event, b"")]).result(30)
        assert outcome.status is RecordStatus.DUPLICATE

    @rule(seconds=st.one_of(st.integers(0, 120), st.integers(0, 30 * 3600)))
    def wait(self, seconds: int) -> None:
        then = self.now + seconds * SECOND
        if not self.loose:
            # So that no hold ends before its event is there.
            waiting = [*self.running, *(event.request_id for event in self.pending)]
            ends = [self.asks[name].deadline_ns + GRACE * SECOND - 1 for name in waiting]
            then = min([then, *ends])
        self.now = max(self.now, then)

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        stored = self.store.read(stored_standing)
        for tenant, money in self.money.items():
            wallet = stored.wallets.get(tenant, "CNY")
            assert (wallet is not None) == money.started
            if wallet is not None:
                assert wallet.prepaid == money.prepaid
                assert wallet.available_at(self.now) == money.available(self.now)

    @invariant()
    def what_was_reserved_passes_nothing(self) -> None:
        for tenant, money in self.money.items():
            if tenant in self.unreserved:
                continue
            assert money.prepaid >= 0
            held = self.store.read(lambda c, t=tenant: held_money(c, t, self.now))
            pots = sum(pot[2] for pot in money.pots)
            assert held.get("CNY", 0) <= money.prepaid + pots
        if "acme" not in self.unreserved:
            days: dict[int, Decimal] = {}
            for event in self.sent:
                if event.project_id == "search" and event.tenant_id == "acme":
                    day = (event.end_time_ns // SECOND + 8 * 3600) // 86_400
                    days[day] = days.get(day, Decimal(0)) + cost(event)
            assert all(spent <= PROJECT_LIMIT for spent in days.values())

    def teardown(self) -> None:
        assert self.loose or not self.unreserved
        self.send(list(self.pending))
        self.now += 1000 * SECOND
        left = self.ledger.decide(lambda _, standing, now: (standing.expire(now), standing)[1])
        standing = left.result(30)
        assert len(standing.holds) == 0
        assert standing.holds.money(Scope("acme"), "CNY") == 0
        stored = self.store.read(stored_standing)
        assert len(stored.holds) == 0
        self.balances_are_those_of_the_model()
        head = self.ledger.head
        assert self.store.read(lambda c: verify_ledger(c, head)).problem == ""
        self.close()
        shutil.rmtree(self.directory)

    def event(
        self, name: str, tenant: str, project: str, hit: int, prompt: int, output: int, end: int
    ) -> UsageEvent:
        return UsageEvent(
            request_id=name,
            schema_version=1,
            tenant_id=TenantId(tenant),
            model="demo",
            start_time_ns=START - SECOND,
            end_time_ns=end,
            end_reason=EndReason.STOP,
            tokens=TokenCounts(prompt, hit, 0, hit, 0, 0, prompt - hit, output),
            node="n",
            client_request_id="",
            ttft_ns=None,
            project_id=project,
        )

    def send(self, events: list[UsageEvent]) -> None:
        if not events:
            return
        stored = self.store.read(stored_standing)
        for event in events:
            hold = stored.holds.get(event.request_id)
            amount = cost(event)
            if amount and (hold is None or hold.expires_ns <= self.now):
                self.unreserved.add(event.tenant_id)
            self.money[event.tenant_id].charge(amount, event.end_time_ns or 0)
        outcomes = self.ledger.record([Submission(event, b"") for event in events]).result(30)
        assert {outcome.status for outcome in outcomes} == {RecordStatus.ACCEPTED}
        sent = {id(event) for event in events}
        self.pending = [event for event in self.pending if id(event) not in sent]
        self.sent += events


def cost(event: UsageEvent) -> Decimal:
    tokens = event.tokens
    return Decimal(tokens.hit) / 10 + tokens.miss + 2 * tokens.output


TestBudgets = BudgetMachine.TestCase
TestBudgets.settings = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
