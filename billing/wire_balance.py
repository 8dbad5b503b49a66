"""Fundings and balances as messages of `kvtier.v1`, and back. Pure functions, any thread."""

from decimal import Decimal

from google.protobuf.timestamp_pb2 import Timestamp

from billing.errors import FundingRefusedError
from billing.funding import FundingAsk, FundingKind
from billing.funding_entries import Funded
from billing.money import parse_price, to_text
from billing.wallet import Wallet
from kvtier.v1 import budget_pb2

__all__ = ["balance_message", "funded_message", "funding_ask_of"]


def funding_ask_of(request: budget_pb2.FundBalanceRequest) -> FundingAsk:
    """Raises FundingRefusedError for a kind, an amount or an end that is none."""
    name = budget_pb2.FundingKind.Name(request.kind) if request.kind in _NUMBERS else ""
    try:
        kind = FundingKind[name.removeprefix("FUNDING_KIND_")]
        amount: Decimal = parse_price(request.amount)
    except (KeyError, ValueError) as error:
        raise FundingRefusedError(f"not a kind or an amount: {error}") from None
    at = request.expire_time
    return FundingAsk(
        funding_id=request.funding_id,
        kind=kind,
        tenant_id=request.tenant_id,
        amount=amount,
        currency=request.currency_code,
        reason=request.reason,
        operator=request.operator,
        expires_ns=at.seconds * 10**9 + at.nanos if request.HasField("expire_time") else None,
    )


def funded_message(made: Funded) -> budget_pb2.FundBalanceResponse:
    ask = made.funding.ask
    message = budget_pb2.Funding(
        funding_id=ask.funding_id,
        tenant_id=ask.tenant_id,
        kind=f"FUNDING_KIND_{ask.kind.name}",
        amount=to_text(ask.amount),
        currency_code=ask.currency,
        expire_time=_time(ask.expires_ns),
        reason=ask.reason,
        operator=ask.operator,
        create_time=_time(made.funding.time_ns),
        ledger_position=made.position,
    )
    return budget_pb2.FundBalanceResponse(funding=message, already_there=made.again)


def balance_message(
    currency: str, wallet: Wallet, held: Decimal, now_ns: int
) -> budget_pb2.Balance:
    return budget_pb2.Balance(
        currency_code=currency,
        total_amount=to_text(wallet.available_at(now_ns)),
        granted_amount=to_text(wallet.granted_at(now_ns)),
        topped_up_amount=to_text(wallet.prepaid),
        held_amount=to_text(held),
        grants=[
            budget_pb2.GrantLeft(
                ledger_position=grant.position,
                left_amount=to_text(grant.left),
                expire_time=_time(grant.expires_ns),
            )
            for grant in wallet.grants
            if grant.pays_at(now_ns)
        ],
    )


def _time(time_ns: int | None) -> Timestamp | None:
    if time_ns is None:
        return None
    time = Timestamp()
    time.FromNanoseconds(time_ns)
    return time


_NUMBERS = frozenset(budget_pb2.FundingKind.values())
