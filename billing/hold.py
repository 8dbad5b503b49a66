"""Holds: what requests under way may still cost and weigh.

    reserve -> Hold -> settled by the event | released | expired by itself

Invariant: at any time the sums are those of the holds that have not expired, and there are at most
HOLDS_MAX. Owned by the ledger's writer thread; its rows are in the table `holds`.
"""

import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from billing.budget import Scope, scopes_of
from billing.cost_bound import RequestShape
from billing.money import EXACT, ZERO

__all__ = ["HOLDS_MAX", "Hold", "Holds", "ReserveAsk", "ask_from_text", "ask_text"]

HOLDS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class ReserveAsk:
    """A request as its worker announces it."""

    request_id: str
    tenant_id: str
    project_id: str
    key_id: str
    shape: RequestShape
    deadline_ns: int
    """It ends before."""

    @property
    def scopes(self) -> tuple[Scope, ...]:
        return scopes_of(self.tenant_id, self.project_id, self.key_id)


@dataclass(frozen=True, slots=True)
class Hold:
    ask: ReserveAsk
    amount: Decimal
    currency: str
    """Empty: the request has no price, and nothing that is limited by money covers it."""
    weight: int
    """In millionths."""
    expires_ns: int
    """From then on it counts for nothing."""


class Holds:
    def __init__(self, found: Iterable[Hold] = ()) -> None:
        self._holds: dict[str, Hold] = {}
        self._ends: list[tuple[int, str]] = []
        self._money: dict[tuple[Scope, str], Decimal] = {}
        self._weight: dict[Scope, int] = {}
        self._count: dict[Scope, int] = {}
        for hold in found:
            self.add(hold)

    def __len__(self) -> int:
        return len(self._holds)

    def get(self, request_id: str) -> Hold | None:
        return self._holds.get(request_id)

    def money(self, scope: Scope, currency: str) -> Decimal:
        return self._money.get((scope, currency), ZERO)

    def weight(self, scope: Scope) -> int:
        return self._weight.get(scope, 0)

    def count(self, scope: Scope) -> int:
        return self._count.get(scope, 0)

    def add(self, hold: Hold) -> None:
        """REQUIRES: none of that request's id."""
        name = hold.ask.request_id
        assert name not in self._holds, "a request has one hold"
        self._holds[name] = hold
        heapq.heappush(self._ends, (hold.expires_ns, name))
        self._sum(hold, 1)

    def remove(self, request_id: str) -> Hold | None:
        """None: there is none."""
        hold = self._holds.pop(request_id, None)
        if hold is not None:
            self._sum(hold, -1)
            # What is left in the heap of holds that are gone is at most as much again.
            if len(self._ends) > 2 * len(self._holds) + 64:
                self._ends = [(each.expires_ns, name) for name, each in self._holds.items()]
                heapq.heapify(self._ends)
        return hold

    def expired(self, now_ns: int) -> list[Hold]:
        """Takes out those that have."""
        found = []
        while self._ends and self._ends[0][0] <= now_ns:
            end, name = heapq.heappop(self._ends)
            hold = self._holds.get(name)
            if hold is not None and hold.expires_ns == end:
                del self._holds[name]
                self._sum(hold, -1)
                found.append(hold)
        return found

    def _sum(self, hold: Hold, sign: int) -> None:
        amount = hold.amount if sign > 0 else EXACT.minus(hold.amount)
        for scope in hold.ask.scopes:
            key = (scope, hold.currency)
            _add(self._money, key, EXACT.add(self.money(*key), amount))
            _add(self._weight, scope, self.weight(scope) + sign * hold.weight)
            _add(self._count, scope, self.count(scope) + sign)


def _add(sums: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    """Nothing is kept of what is over."""
    if value:
        sums[key] = value
    else:
        sums.pop(key, None)


def ask_text(ask: ReserveAsk) -> str:
    """Equal for equal asks: one line of JSON."""
    shape = ask.shape
    fields = {
        "completion_tokens": shape.completion_tokens,
        "deadline_ns": ask.deadline_ns,
        "key_id": ask.key_id,
        "model": shape.model,
        "project_id": ask.project_id,
        "prompt_tokens": shape.prompt_tokens,
        "service_class": shape.service_class,
        "tenant_id": ask.tenant_id,
        "ttl_class": shape.ttl_class,
    }
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=True)


def ask_from_text(request_id: str, text: str) -> ReserveAsk:
    """Inverse of `ask_text`. REQUIRES: such a text."""
    fields = json.loads(text)
    shape = RequestShape(
        model=fields["model"],
        prompt_tokens=fields["prompt_tokens"],
        completion_tokens=fields["completion_tokens"],
        service_class=fields["service_class"],
        ttl_class=fields["ttl_class"],
    )
    names = (fields[name] for name in ("tenant_id", "project_id", "key_id"))
    tenant_id, project_id, key_id = names
    return ReserveAsk(request_id, tenant_id, project_id, key_id, shape, fields["deadline_ns"])
