"""Verification of fundings and wallets: what each entry says, and what they all leave.

Reads the verifier's snapshot; a reader's thread.
"""

from sqlalchemy import Connection, RowMapping

from billing.errors import FundingRefusedError
from billing.funding import Funding, funding_from_text
from billing.funding_entries import check_funding
from billing.wallet_rows import stored_wallets
from billing.wallets import Wallets

__all__ = ["funding_problem", "wallet_problem"]


def funding_problem(row: RowMapping, position: int, wallets: Wallets) -> tuple[str, Funding | None]:
    """The funding of an entry, which `wallets` have taken; or what is wrong with it, and None."""
    try:
        funding = funding_from_text(row["event"])
        check_funding(funding.ask)
        if funding.time_ns != row["recorded_time_ns"]:
            raise ValueError("its time is not when it was recorded")
        wallets.funded(funding, position)
    except (ValueError, ArithmeticError, FundingRefusedError) as error:
        return f"the balance does not take it: {error}", None
    return "", funding


def wallet_problem(connection: Connection, made: Wallets) -> str:
    """Empty when the stored wallets are those that the entries `made`."""
    try:
        found = dict(stored_wallets(connection).items())
    except (ValueError, ArithmeticError, LookupError, TypeError):
        return "a stored wallet is none"
    for (tenant_id, currency), wallet in made.items():
        stored = found.pop((tenant_id, currency), None)
        if stored is None or stored.text != wallet.text:
            return f"the wallet of {tenant_id} in {currency} is not what its entries leave"
    if found:
        tenant_id, currency = min(found)
        return f"the wallet of {tenant_id} in {currency} is of no entry"
    return ""
