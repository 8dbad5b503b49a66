"""What tests of budgets and reservations say to a ledger with a price of one a token."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from billing.budget import Budget, BudgetSet, Scope, SpendLimit
from billing.budget_period import PeriodKind
from billing.cost_bound import RequestShape
from billing.errors import (
    BillingError,
)
from billing.hold import ReserveAsk
from billing.reservations import Reservations
from billing.standing_rows import held_money
from billing.usage import UsageEvent

Events = Callable[..., UsageEvent]
Till = Any
SECOND = 10**9
DAY = 86_400 * SECOND
BOOK = """
format = 2
[[versions]]
name = "one a token"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "free-*"
hit = "0"
miss = "0"
output = "0"
[[versions.prices]]
model = "demo*"
per = 1
hit = "0.1"
miss = "1"
output = "2"
quota = { hit = "0.1" }
"""


def budget(till: Till, scope: Scope | None = None, **said: Any) -> int:
    asked = Budget(scope or Scope("acme"), **said)
    made = BudgetSet(f"b{till.ledger.head.position}", asked, "test", "ann", 0)
    return int(till.ledger.set_budget(made).result(30).position)


def limit(amount: str, **said: Any) -> SpendLimit:
    return SpendLimit(Decimal(amount), "CNY", said.pop("period", PeriodKind.DAY), **said)


def asked(till: Till, name: str, prompt: int = 100, output: int = 10, **said: Any) -> ReserveAsk:
    shape = RequestShape(said.pop("model", "demo"), prompt, output)
    fields = {"tenant_id": "acme", "project_id": "", "key_id": ""} | said
    deadline = fields.pop("deadline_ns", till.clock.now_ns + 60 * SECOND)
    return ReserveAsk(name, shape=shape, deadline_ns=deadline, **fields)


def reserve(till: Till, name: str, *sizes: int, **said: Any) -> Any:
    """The answer, or the refusal."""
    ask = asked(till, name, *sizes, **said)
    try:
        return Reservations(till.ledger).reserve(ask).result(30)
    except BillingError as error:
        return error


def release(till: Till, name: str) -> bool:
    return bool(Reservations(till.ledger).release(name).result(30))


def held(till: Till) -> Decimal:
    found: dict[str, Decimal] = till.store.read(lambda c: held_money(c, "acme", till.clock.now_ns))
    return found.get("CNY", Decimal(0))
