"""A tenant's wallet in one currency: what was paid in and granted, and what charges left of it.

    funding --> topped_up / granted / withdrawn      a charge --> charged      now --> available_at

Charges take from grants that had not expired when the request ended, the first to expire first,
then from what was paid in, which may go below zero. Invariant: what is available at a time changes
by exactly each amount, and the same operations in the same order give the same text. Frozen:
`verify` recomputes it. Exact; pure, any thread.
"""

import json
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from billing.money import EXACT, ZERO, to_text

__all__ = ["GRANTS_MAX", "Grant", "Wallet", "wallet_from_text"]

GRANTS_MAX = 64
"""Of a wallet, that have something left."""

_KEPT_NS = 31 * 24 * 3600 * 10**9
"""How long what is left of an expired grant waits for events of before, which come late."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What is left of one."""

    position: int
    """Of its entry."""
    expires_ns: int | None
    """From then on it pays for nothing that ends; None: never."""
    left: Decimal

    def pays_at(self, time_ns: int) -> bool:
        return self.expires_ns is None or time_ns < self.expires_ns


@dataclass(frozen=True, slots=True)
class Wallet:
    start: int
    """Position of the entry that first put something in; charges before it are none of it."""
    prepaid: Decimal = ZERO
    """Below zero: owed."""
    grants: tuple[Grant, ...] = ()
    """Those with something left, in the order in which they pay."""
    full: Decimal = ZERO
    """What was available just after it was last filled, and the position of that entry."""
    full_position: int = 0

    def available_at(self, time_ns: int) -> Decimal:
        """Without what is held."""
        return EXACT.add(self.prepaid, self.granted_at(time_ns))

    def granted_at(self, time_ns: int) -> Decimal:
        total = ZERO
        for grant in self.grants:
            if grant.pays_at(time_ns):
                total = EXACT.add(total, grant.left)
        return total

    def charged(self, amount: Decimal, time_ns: int) -> "Wallet":
        """After a charge of what ended at `time_ns`; a negative one is given back as paid in."""
        if amount <= 0 or not self.grants:
            return replace(self, prepaid=EXACT.subtract(self.prepaid, amount))
        kept = []
        for grant in self.grants:
            if grant.pays_at(time_ns) and amount:
                taken = min(grant.left, amount)
                amount = EXACT.subtract(amount, taken)
                grant = replace(grant, left=EXACT.subtract(grant.left, taken))
            if grant.left:
                kept.append(grant)
        prepaid = EXACT.subtract(self.prepaid, amount)
        return replace(self, prepaid=prepaid, grants=tuple(kept))

    def topped_up(self, amount: Decimal, position: int, now_ns: int) -> "Wallet":
        return replace(self, prepaid=EXACT.add(self.prepaid, amount))._filled(position, now_ns)

    def granted(
        self, amount: Decimal, expires_ns: int | None, position: int, now_ns: int
    ) -> "Wallet":
        """Raises ValueError when GRANTS_MAX have something left."""
        kept = [each for each in self.grants if each.pays_at(now_ns - _KEPT_NS)]
        if len(kept) >= GRANTS_MAX:
            raise ValueError(f"{GRANTS_MAX} grants have something left; use them up first")
        kept.append(Grant(position, expires_ns, amount))
        kept.sort(key=_order)
        return replace(self, grants=tuple(kept))._filled(position, now_ns)

    def withdrawn(self, amount: Decimal) -> "Wallet":
        """Raises ValueError when less was paid in and is left."""
        if amount > self.prepaid:
            raise ValueError(f"of what was paid in {to_text(self.prepaid)} is left")
        return replace(self, prepaid=EXACT.subtract(self.prepaid, amount))

    def _filled(self, position: int, now_ns: int) -> "Wallet":
        return replace(self, full=self.available_at(now_ns), full_position=position)

    @property
    def text(self) -> str:
        """Canonical: one line of ASCII JSON."""
        fields = {
            "full": to_text(self.full),
            "full_position": self.full_position,
            "grants": [[g.position, g.expires_ns, to_text(g.left)] for g in self.grants],
            "prepaid": to_text(self.prepaid),
            "start": self.start,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True)


def wallet_from_text(text: str) -> Wallet:
    """Inverse of `Wallet.text`. REQUIRES: such a text."""
    fields: dict[str, Any] = json.loads(text)
    grants = (Grant(position, at, Decimal(left)) for position, at, left in fields["grants"])
    return Wallet(
        start=fields["start"],
        prepaid=Decimal(fields["prepaid"]),
        grants=tuple(grants),
        full=Decimal(fields["full"]),
        full_position=fields["full_position"],
    )


def _order(grant: Grant) -> tuple[bool, int, int]:
    return (grant.expires_ns is None, grant.expires_ns or 0, grant.position)
