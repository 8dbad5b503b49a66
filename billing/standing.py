"""How everybody stands: wallets, budgets, holds, what a period has cost, limits on rates.

    used / corrected / funded / budget_set      what entries do
    reserve / release / expire                  what requests do
    take_changes                                what of it is to be written, in the transaction

Invariant: a request is let in only where, with everything held, each budget that covers it still
fits; all that decides is here, and is decided on the ledger's writer thread alone. After a
transaction that failed this object is thrown away and made anew from what is stored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.alerting import Alerting
from billing.budget import Budget, Scope, scopes_of
from billing.budget_alert import Alert
from billing.budget_period import period_at
from billing.budgets import Budgets, Placed
from billing.correction import Correction
from billing.cost_bound import CostBound, cost_bound
from billing.errors import BillingError, FundingRefusedError, ReservationsFullError
from billing.funding import FundingAsk, FundingKind
from billing.hold import HOLDS_MAX, Hold, Holds, ReserveAsk
from billing.money import EXACT, ZERO, to_text
from billing.price_book import PriceBook
from billing.quota_weight import quota_weight, weight_bound, weight_micro
from billing.quotas import Quotas
from billing.rating import Posting
from billing.refusing import balance_refusal, limit_refusal, price_refusal, quota_refusal
from billing.spending import Spending, SpendKey
from billing.usage import UsageEvent
from billing.wallet import Wallet
from billing.wallets import WalletKey, Wallets

__all__ = ["Changes", "Standing", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database has of it."""

    wallets: Wallets
    budgets: Budgets
    holds: Holds


@dataclass(frozen=True, slots=True)
class Changes:
    """What a transaction has to write."""

    wallets: list[tuple[WalletKey, Wallet]]
    new_holds: list[Hold]
    ended_holds: list[str]
    """Of those stored: request ids."""
    alerts: list[Alert]
    dropped_spending: list[Scope]
    """Whose rows go, before those that come."""
    spending: list[tuple[SpendKey, Decimal]]


class Standing:
    def __init__(
        self,
        stored: Stored,
        book: PriceBook,
        read: Callable[[Callable[[Any], Any]], Any],
        grace_ns: int,
    ) -> None:
        """`read` runs a query on what is committed; `grace_ns`: how long behind a request's
        deadline its event is waited for.
        """
        self.wallets = stored.wallets
        self.budgets = stored.budgets
        self.holds = stored.holds
        self.spending = Spending(read)
        self._quotas = Quotas(read, book, stored.holds)
        self._alerting = Alerting(read)
        self._book = book
        self._grace_ns = grace_ns
        self._new: dict[str, Hold] = {}
        self._ended: list[str] = []

    def reserve(self, ask: ReserveAsk, now_ns: int) -> Hold | BillingError:
        """Holds what the request may cost and weigh, or says what does not fit. One that no budget
        covers is held nothing. REQUIRES: nothing is held for it, and it has not ended.
        """
        self.expire(now_ns)
        over = self.budgets.over(ask.scopes)
        nothing = Hold(ask, ZERO, "", 0, now_ns)
        if not over:
            return nothing
        if len(self.holds) >= HOLDS_MAX:
            return ReservationsFullError(f"{HOLDS_MAX} requests are under way; try again later")
        shape = ask.shape
        cost = cost_bound(self._book, shape, now_ns, ask.deadline_ns)
        version = self._book.version_at(now_ns)
        card = version.card_of(shape.model) if version is not None else None
        weight = weight_micro(weight_bound(shape.prompt_tokens, shape.completion_tokens, card))
        refusal = self._money_refusal(over, ask, cost, now_ns)
        if refusal is not None:
            return refusal
        for placed in over:
            short = self._quotas.short(placed, weight, now_ns)
            if short is not None:
                return quota_refusal(placed.scope, short)
        for placed in over:
            self._quotas.take(placed, 1, weight, now_ns)
        amount, currency = (cost.amount, cost.currency) if cost is not None else (ZERO, "")
        hold = Hold(ask, amount, currency, weight, ask.deadline_ns + self._grace_ns)
        self.holds.add(hold)
        self._new[ask.request_id] = hold
        return hold

    def release(self, request_id: str, now_ns: int) -> bool:
        """The request was not served: what was held for it is free. False: nothing was."""
        self.expire(now_ns)
        held = self.holds.get(request_id)
        if held is None:
            return False
        self._prepare(held.ask.scopes, now_ns)
        hold = self._end(request_id)
        assert hold is held
        for placed in self.budgets.over(hold.ask.scopes):
            self._quotas.take(placed, -1, -hold.weight, now_ns)
        return True

    def expire(self, now_ns: int) -> None:
        """What is past its end counts for nothing."""
        for hold in self.holds.expired(now_ns):
            self._forget(hold.ask.request_id)

    def used(self, event: UsageEvent, postings: tuple[Posting, ...], now_ns: int) -> None:
        """A usage event got its entry; what was held for it is settled."""
        assert event.end_time_ns is not None, "accepted events have ended"
        self.expire(now_ns)
        tenant_id, end_ns = event.tenant_id, event.end_time_ns
        if self.budgets.empty:
            self._end(event.request_id)
            for debit in postings[:1]:
                self.wallets.used(tenant_id, debit.currency, debit.amount, end_ns)
            return
        scopes = scopes_of(tenant_id, event.project_id, event.key_id)
        self._prepare(scopes, now_ns)
        hold = self._end(event.request_id)
        owed = postings[0] if postings else None
        if owed is not None:
            self.wallets.used(tenant_id, owed.currency, owed.amount, end_ns)
        for placed in self.budgets.over(scopes):
            self._weigh(placed, event, hold, now_ns)
            if owed is not None:
                self._spend(placed, owed, end_ns, now_ns)

    def stored(self, tenant_id: str, owed: Posting, time_ns: int, now_ns: int) -> None:
        """What was kept stored got its entry."""
        self.wallets.used(tenant_id, owed.currency, owed.amount, time_ns)
        for placed in self.budgets.over(scopes_of(tenant_id, None, None)):
            self._spend(placed, owed, time_ns, now_ns)

    def corrected(
        self, correction: Correction, project_id: str | None, key_id: str | None, now_ns: int
    ) -> None:
        """`project_id` and `key_id`: of the entry that it corrects."""
        self.wallets.corrected(correction)
        owed = Posting("", "", 0, correction.amount, correction.currency)
        for placed in self.budgets.over(scopes_of(correction.tenant_id, project_id, key_id)):
            self._spend(placed, owed, correction.time_ns, now_ns)

    def check_withdrawal(self, ask: FundingAsk, now_ns: int) -> None:
        """Raises FundingRefusedError for what requests under way may still cost."""
        if ask.kind is not FundingKind.WITHDRAWAL:
            return
        self.expire(now_ns)
        held = self.holds.money(Scope(ask.tenant_id), ask.currency)
        wallet = self.wallets.get(ask.tenant_id, ask.currency)
        free = EXACT.subtract(wallet.available_at(now_ns), held) if wallet is not None else ZERO
        if held and ask.amount > free:
            raise FundingRefusedError(
                f"requests under way may cost {to_text(held)} of it; take out less, or wait"
            )

    def budget_set(self, budget: Budget, position: int) -> None:
        self.budgets.put(budget, position)
        self.spending.drop(budget.scope)

    def take_changes(self) -> Changes:
        """Since the last call."""
        changes = Changes(
            self.wallets.take_changed(),
            list(self._new.values()),
            self._ended,
            self._alerting.take_due(),
            *self.spending.take_changes(),
        )
        self._new, self._ended = {}, []
        return changes

    def _money_refusal(
        self, over: Iterable[Placed], ask: ReserveAsk, cost: CostBound | None, now_ns: int
    ) -> BillingError | None:
        for placed in over:
            budget = placed.budget
            if not budget.of_money:
                continue
            if cost is None:
                return price_refusal(ask)
            held = self.holds.money(placed.scope, cost.currency)
            if budget.balance_required:
                wallet = self.wallets.get(ask.tenant_id, cost.currency)
                left = wallet.available_at(ask.deadline_ns) if wallet is not None else ZERO
                if EXACT.add(held, cost.amount) > left:
                    return balance_refusal(placed.scope, left, held, cost)
            limit = budget.limit
            if limit is not None and limit.hard:
                period = period_at(limit.period, limit.zone, now_ns)
                spent = self.spending.of(placed.scope, limit, period)
                total = EXACT.add(EXACT.add(spent, held), cost.amount)
                if cost.currency != limit.currency or total > limit.amount:
                    return limit_refusal(placed, spent, held, cost, period, now_ns)
        return None

    def _weigh(self, placed: Placed, event: UsageEvent, hold: Hold | None, now_ns: int) -> None:
        assert event.end_time_ns is not None
        version = self._book.version_at(event.end_time_ns)
        card = version.card_of(event.model) if version is not None else None
        weight = weight_micro(quota_weight(event.tokens, card))
        if hold is not None:
            self._quotas.take(placed, 0, weight - hold.weight, now_ns)
        else:
            self._quotas.take(placed, 1, weight, now_ns)
        self._quotas.ended(placed, weight, event.end_time_ns, now_ns)

    def _spend(self, placed: Placed, owed: Posting, end_ns: int, now_ns: int) -> None:
        limit = placed.budget.limit
        if limit is not None and limit.currency == owed.currency:
            period = period_at(limit.period, limit.zone, end_ns)
            assert period.start_ns is not None
            assert period.end_ns is not None
            if period.end_ns > now_ns:  # what is over limits nothing any more
                spent = self.spending.add(placed.scope, limit, period, owed.amount)
                self._alerting.spent(placed, period.start_ns, spent, now_ns)
        if placed.scope == Scope(placed.scope.tenant_id):
            wallet = self.wallets.get(placed.scope.tenant_id, owed.currency)
            if wallet is not None:
                self._alerting.left(placed, wallet, owed.currency, now_ns)

    def _prepare(self, scopes: Iterable[Scope], now_ns: int) -> None:
        """Quotas that are made from what is held have a request in before it ends."""
        for placed in self.budgets.over(scopes):
            self._quotas.prepare(placed, now_ns)

    def _end(self, request_id: str) -> Hold | None:
        hold = self.holds.remove(request_id)
        if hold is not None:
            self._forget(request_id)
        return hold

    def _forget(self, request_id: str) -> None:
        if self._new.pop(request_id, None) is None:
            self._ended.append(request_id)
