"""All wallets, as the ledger's entries make them, one after the other.

Whoever walks the ledger has one of these: the writer, for what it appends; verification, from the
first entry on. Invariant: the same entries in the same order leave the same wallets. Owned by who
made it.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from billing.correction import Correction
from billing.funding import Funding, FundingKind
from billing.wallet import Wallet

__all__ = ["WalletKey", "Wallets"]

WalletKey = tuple[str, str]
"""(tenant, currency)."""


class Wallets:
    def __init__(self, found: Mapping[WalletKey, Wallet] | None = None) -> None:
        self._wallets = dict(found or {})
        self._changed: set[WalletKey] = set()

    def get(self, tenant_id: str, currency: str) -> Wallet | None:
        """None: nothing was ever put in."""
        return self._wallets.get((tenant_id, currency))

    def of(self, tenant_id: str) -> dict[str, Wallet]:
        """By currency."""
        return {key[1]: each for key, each in self._wallets.items() if key[0] == tenant_id}

    def items(self) -> Iterable[tuple[WalletKey, Wallet]]:
        return self._wallets.items()

    def used(self, tenant_id: str, currency: str, amount: Decimal, end_time_ns: int) -> None:
        """A usage event was charged."""
        self._charge((tenant_id, currency), amount, end_time_ns, None)

    def corrected(self, correction: Correction) -> None:
        """One of an entry from before the wallet began moves nothing: that was never in it."""
        key = (correction.tenant_id, correction.currency)
        self._charge(key, correction.amount, correction.time_ns, correction.corrects)

    def funded(self, funding: Funding, position: int) -> None:
        """Raises ValueError, and changes nothing, when the wallet does not take it."""
        ask = funding.ask
        key = (ask.tenant_id, ask.currency)
        wallet = self._wallets.get(key) or Wallet(start=position)
        if ask.kind is FundingKind.TOP_UP:
            made = wallet.topped_up(ask.amount, position, funding.time_ns)
        elif ask.kind is FundingKind.GRANT:
            made = wallet.granted(ask.amount, ask.expires_ns, position, funding.time_ns)
        else:
            made = wallet.withdrawn(ask.amount)
        self._set(key, made)

    def take_changed(self) -> list[tuple[WalletKey, Wallet]]:
        """Those changed since the last call."""
        changed = [(key, self._wallets[key]) for key in sorted(self._changed)]
        self._changed.clear()
        return changed

    def _charge(self, key: WalletKey, amount: Decimal, time_ns: int, of: int | None) -> None:
        wallet = self._wallets.get(key)
        if wallet is None or not amount or (of is not None and of < wallet.start):
            return
        self._set(key, wallet.charged(amount, time_ns))

    def _set(self, key: WalletKey, wallet: Wallet) -> None:
        self._wallets[key] = wallet
        self._changed.add(key)
