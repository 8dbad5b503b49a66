"""What a request is told that does not fit: which limit, and when it may fit again. Pure."""

from datetime import UTC, datetime
from decimal import Decimal

from billing.budget import Scope
from billing.budgets import Placed
from billing.cost_bound import CostBound
from billing.errors import (
    BudgetExhaustedError,
    InsufficientBalanceError,
    PriceUnknownError,
    QuotaExceededError,
)
from billing.hold import ReserveAsk
from billing.money import to_text
from billing.period import Period
from billing.quota_state import QuotaShort

__all__ = ["balance_refusal", "limit_refusal", "price_refusal", "quota_refusal"]

_SECOND_NS = 10**9


def balance_refusal(
    scope: Scope, left: Decimal, held: Decimal, cost: CostBound
) -> InsufficientBalanceError:
    return InsufficientBalanceError(
        f"the balance of {scope} is {to_text(left)} {cost.currency}, {to_text(held)} of it held for"
        f" requests under way; this one may cost {to_text(cost.amount)}. Top it up, or ask for a"
        " shorter answer",
        tenant_id=scope.tenant_id,
        balance=to_text(left),
        held=to_text(held),
        cost=to_text(cost.amount),
        currency_code=cost.currency,
    )


def limit_refusal(
    placed: Placed, spent: Decimal, held: Decimal, cost: CostBound, period: Period, now_ns: int
) -> BudgetExhaustedError:
    limit = placed.budget.limit
    assert limit is not None
    assert period.end_ns is not None
    words = (
        f"{placed.scope} may spend {to_text(limit.amount)} {limit.currency} a {limit.period.value}"
    )
    if cost.currency != limit.currency:
        words += f", and the model is priced in {cost.currency}; set a limit in that currency"
    else:
        words += (
            f": {to_text(spent)} are spent, {to_text(held)} held for requests under way, and this"
            f" one may cost {to_text(cost.amount)}. Raise it, or wait until"
            f" {datetime.fromtimestamp(period.end_ns // _SECOND_NS, UTC):%Y-%m-%dT%H:%MZ}"
        )
    return BudgetExhaustedError(
        words,
        scope=placed.scope,
        limit=to_text(limit.amount),
        spent=to_text(spent),
        held=to_text(held),
        cost=to_text(cost.amount),
        currency_code=limit.currency,
        retry_after_seconds=_seconds(period.end_ns - now_ns),
    )


def quota_refusal(scope: Scope, short: QuotaShort) -> QuotaExceededError:
    seconds = _seconds(short.wait_ns)
    what, _, per = short.quota.partition("_per_")
    return QuotaExceededError(
        f"{scope} may have {short.limit} {what} a {per}; send again in {seconds} s",
        scope=scope,
        quota=short.quota,
        limit=short.limit,
        retry_after_seconds=seconds,
    )


def price_refusal(ask: ReserveAsk) -> PriceUnknownError:
    return PriceUnknownError(
        "no version of the price book covers the model until the request's deadline, or not in one"
        " currency, so nothing that is limited by money can use it; add a version, or take the"
        " limit away",
        model=ask.shape.model,
    )


def _seconds(wait_ns: int) -> int:
    """Whole ones, so that who waits them may pass."""
    return max(1, -(-wait_ns // _SECOND_NS))
