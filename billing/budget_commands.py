"""`kvtier budget`: what tenants have left and what is put in or taken out, what they may spend and
ask for, and the alerts of both; over gRPC from billing.

A table and JSON are two spellings of the same data. JSON is one object on standard output and
nothing else; errors go to standard error with exit status 1 (2 for a wrong command line).
"""

import getpass
import uuid
from typing import Annotated

import typer

from billing.balance_data import balance_data, funding_data
from billing.client import call_budgets
from billing.command_line import DEFAULT_ADDRESS, Address, JsonOption, console, print_json
from billing.command_values import option_text, option_time
from billing.limit_commands import add_limit_commands
from billing.tables import show_rows
from kvtier.v1 import budget_pb2

__all__ = ["app"]

Tenant = Annotated[str, typer.Option(help="Whose balance.")]
Amount = Annotated[str, typer.Option(help="How much, above 0; 12.50")]
Currency = Annotated[str, typer.Option(help="As the price book calls it; CNY")]
Reason = Annotated[str, typer.Option(help="For whoever reads the ledger.")]
Id = Annotated[
    str, typer.Option("--id", help="Of this payment: the same id happens once. Empty: new.")
]
Operator = Annotated[str, typer.Option(help="Who says so. Empty: the user's name.")]

app = typer.Typer(no_args_is_help=True, help="Balances and budgets.")


@app.command(short_help="What a tenant has left.")
def show(tenant: Tenant, json_: JsonOption = False, address: Address = DEFAULT_ADDRESS) -> None:
    """What a tenant has left now, by currency, after everything that was charged."""
    request = budget_pb2.GetBalanceRequest(tenant_id=option_text("--tenant", tenant))
    response = call_budgets(address, lambda stub, wait: stub.GetBalance(request, timeout=wait))
    balances = [balance_data(each) for each in response.balances]
    if json_:
        print_json({"tenant": tenant, "balances": balances})
        return
    if not balances:
        console().print("Nothing was ever paid in or granted.", highlight=False)
        return
    keys = ("currency", "total", "granted", "topped_up", "held")
    show_rows(console(), f"Balance of {tenant}", keys, balances, [])


@app.command("top-up", short_help="A tenant paid in.")
def top_up(
    tenant: Tenant,
    amount: Amount,
    currency: Currency,
    reason: Reason,
    id_: Id = "",
    operator: Operator = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Adds what a tenant paid in to its balance, as an entry of the ledger, once per id."""
    request = _request("TOP_UP", tenant, amount, currency, reason, id_, operator)
    _fund(address, request, json_)


@app.command(short_help="Give a tenant something.")
def grant(
    tenant: Tenant,
    amount: Amount,
    currency: Currency,
    reason: Reason,
    expires: Annotated[
        str, typer.Option(help="From then on it pays for nothing; 2026-12-31. Empty: never.")
    ] = "",
    id_: Id = "",
    operator: Operator = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Adds a gift to a tenant's balance, which pays before what was paid in."""
    request = _request("GRANT", tenant, amount, currency, reason, id_, operator)
    if expires:
        request.expire_time.CopyFrom(option_time("--expires", expires))
    _fund(address, request, json_)


@app.command(short_help="A tenant got back of what it paid in.")
def withdraw(
    tenant: Tenant,
    amount: Amount,
    currency: Currency,
    reason: Reason,
    id_: Id = "",
    operator: Operator = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Takes out of what a tenant paid in and has left; also what puts a mistaken top-up right."""
    request = _request("WITHDRAWAL", tenant, amount, currency, reason, id_, operator)
    _fund(address, request, json_)


def _request(
    kind: str, tenant: str, amount: str, currency: str, reason: str, id_: str, operator: str
) -> budget_pb2.FundBalanceRequest:
    return budget_pb2.FundBalanceRequest(
        funding_id=option_text("--id", id_) or str(uuid.uuid4()),
        tenant_id=option_text("--tenant", tenant),
        kind=f"FUNDING_KIND_{kind}",
        amount=option_text("--amount", amount),
        currency_code=option_text("--currency", currency),
        reason=option_text("--reason", reason),
        operator=option_text("--operator", operator) or getpass.getuser(),
    )


def _fund(address: str, request: budget_pb2.FundBalanceRequest, json_: bool) -> None:
    response = call_budgets(address, lambda stub, wait: stub.FundBalance(request, timeout=wait))
    data = funding_data(response)
    if json_:
        print_json(data)
        return
    again = " (it was there already)" if data["already_there"] else ""
    console().print(
        f"{data['kind']} of {data['amount']} {data['currency']} for {data['tenant']}: id"
        f" {data['funding_id']}, entry {data['position']}{again}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


add_limit_commands(app)
