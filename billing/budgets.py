"""The budgets that hold: the newest of each scope.

Owned by the ledger's writer thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from billing.budget import EVERY_TENANT, Budget, Scope

__all__ = ["Budgets", "Placed"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A budget over a scope, which is that of the budget or a tenant without one of its own."""

    scope: Scope
    budget: Budget
    position: int
    """Of its entry."""


class Budgets:
    def __init__(self, found: Iterable[tuple[Budget, int]] = ()) -> None:
        """(budget, position of its entry), oldest first."""
        self._budgets: dict[Scope, tuple[Budget, int]] = {}
        for budget, position in found:
            self.put(budget, position)

    def put(self, budget: Budget, position: int) -> None:
        if budget.empty:
            self._budgets.pop(budget.scope, None)
        else:
            self._budgets[budget.scope] = (budget, position)

    @property
    def empty(self) -> bool:
        """Whether nobody has one."""
        return not self._budgets

    def over(self, scopes: Iterable[Scope]) -> list[Placed]:
        """Those that cover a request of `scopes`, in their order."""
        if not self._budgets:
            return []
        found = []
        for scope in scopes:
            placed = self._budgets.get(scope)
            if placed is None and scope == Scope(scope.tenant_id):
                placed = self._budgets.get(Scope(EVERY_TENANT))
            if placed is not None:
                found.append(Placed(scope, *placed))
        return found

    def of(self, tenant_id: str, project_id: str = "") -> list[Placed]:
        """Of a tenant and what is within it, or of one project; of everybody: ""."""
        found = [
            Placed(scope, *self._budgets[scope])
            for scope in sorted(self._budgets)
            if tenant_id in ("", scope.tenant_id) and project_id in ("", scope.project_id)
        ]
        if tenant_id and not project_id and Scope(tenant_id) not in self._budgets:
            found = self.over([Scope(tenant_id)]) + found
        return found
