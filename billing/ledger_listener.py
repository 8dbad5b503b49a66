"""Whom the ledger's writer tells what became of a transaction."""

from collections.abc import Sequence
from typing import Protocol

from billing.budget_alert import Alert
from billing.meter import Head, Outcome

__all__ = ["LedgerListener"]


class LedgerListener(Protocol):
    """Hears of each transaction, on the writer's thread; must return at once."""

    def committed(self, outcomes: Sequence[Outcome], batch_count: int, head: Head) -> None: ...

    def alerted(self, alerts: Sequence[Alert], hold_count: int) -> None:
        """Thresholds were passed; so many requests are under way now."""
        ...

    def failed(self, batch_count: int) -> None: ...
