"""The table of wallets: as the entries left them. In the caller's transaction."""

from collections.abc import Iterable

from sqlalchemy import Connection, select

from billing.ledger_rows import put_rows
from billing.ledger_schema import wallets
from billing.wallet import Wallet, wallet_from_text
from billing.wallets import WalletKey, Wallets

__all__ = ["WALLET_KEYS", "keep_wallets", "stored_wallets"]

WALLET_KEYS = ("tenant_id", "currency")


def stored_wallets(connection: Connection, tenant_id: str = "") -> Wallets:
    """Empty: of all tenants."""
    query = select(wallets)
    if tenant_id:
        query = query.where(wallets.c.tenant_id == tenant_id)
    rows = connection.execute(query).all()
    return Wallets({(row.tenant_id, row.currency): wallet_from_text(row.state) for row in rows})


def keep_wallets(connection: Connection, changed: Iterable[tuple[WalletKey, Wallet]]) -> None:
    rows = [
        {"tenant_id": key[0], "currency": key[1], "state": wallet.text} for key, wallet in changed
    ]
    if rows:
        put_rows(connection, wallets, rows, WALLET_KEYS)
