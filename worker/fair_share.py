"""FairShare: whose turn it is, of all tenants that have requests.

    a tenant's turn  moves on by the tokens computed for it
    the common time  moves on by those tokens over the number of tenants that have work
    who comes        starts at the common time, or where its own work ended when that is later

Start-time fair queueing, in tokens. Tenants that have work at the same time get equal tokens; what
one does not use is not saved up, and what it uses while nobody else wants it is no debt. Invariant:
the common time never goes back and every computed token moves it on, so whoever comes later, only
so much work passes a request that waits. Owned by the engine's thread.
"""

from dataclasses import dataclass

__all__ = ["FairShare"]

IDLE_TENANTS_MAX = 1024
"""So many tenants without work are remembered for what they owe; of more, those that owe least are
forgotten."""


@dataclass(slots=True)
class _Account:
    turn: float
    request_count: int = 0


class FairShare:
    """Tenants by name. Only those with requests have a turn."""

    def __init__(self) -> None:
        self._time = 0.0
        self._accounts: dict[str, _Account] = {}
        self._active_count = 0

    def enter(self, tenant: str) -> None:
        """A request of the tenant came."""
        account = self._accounts.setdefault(tenant, _Account(self._time))
        if account.request_count == 0:
            account.turn = max(account.turn, self._time)
            self._active_count += 1
        account.request_count += 1

    def leave(self, tenant: str) -> None:
        """One of its requests ended."""
        account = self._accounts[tenant]
        account.request_count -= 1
        if account.request_count == 0:
            self._active_count -= 1
            if len(self._accounts) - self._active_count > IDLE_TENANTS_MAX:
                self._forget()

    def turn(self, tenant: str) -> float:
        """Who has the least goes first."""
        return self._accounts[tenant].turn

    def charge(self, tenant: str, tokens: int) -> None:
        """The tenant gets so many tokens; negative: it will not get them after all."""
        self._accounts[tenant].turn += tokens

    def computed(self, tokens: int) -> None:
        """So many were computed, for whomever."""
        self._time += tokens / max(1, self._active_count)

    def _forget(self) -> None:
        idle = sorted((a.turn, name) for name, a in self._accounts.items() if not a.request_count)
        owing = idle[-(IDLE_TENANTS_MAX // 2) :]
        kept = {name for turn, name in owing if turn > self._time}
        for _, name in idle:
            if name not in kept:
                del self._accounts[name]
