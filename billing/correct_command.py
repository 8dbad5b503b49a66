"""`kvtier usage correct`: puts a request's bill right by a new entry of the ledger."""

import getpass
import uuid
from typing import Annotated

import typer

from billing.client import call_billing
from billing.command_line import DEFAULT_ADDRESS, Address, JsonOption, console, print_json
from billing.statement import correction_data
from kvtier.v1 import usage_pb2

__all__ = ["correct"]


def correct(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="The request's id.")],
    reason: Annotated[str, typer.Option(help="For whoever reads the invoice.")],
    credit: Annotated[str, typer.Option(help="The tenant owes so much less.")] = "",
    charge: Annotated[str, typer.Option(help="The tenant owes so much more.")] = "",
    reverse: Annotated[bool, typer.Option("--reverse", help="It owes nothing for it.")] = False,
    settle: Annotated[bool, typer.Option("--settle", help="Rate what had no price.")] = False,
    id_: Annotated[
        str, typer.Option("--id", help="Of the correction: the same id happens once. Empty: new.")
    ] = "",
    operator: Annotated[str, typer.Option(help="Who says so. Empty: the user's name.")] = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Adds a credit, a charge, a reversal or a settlement, which refers to the request. Nothing is
    changed or removed; it is on the invoice of the period in which it is made."""
    chosen = [bool(credit), bool(charge), reverse, settle]
    if sum(chosen) != 1:
        raise typer.BadParameter("say one of --credit, --charge, --reverse and --settle")
    request = usage_pb2.CorrectUsageRequest(
        correction_id=id_ or str(uuid.uuid4()),
        request_id=request_id,
        kind=_KINDS[chosen.index(True)],
        amount=credit or charge,
        reason=reason,
        operator=operator or getpass.getuser(),
    )
    response = call_billing(address, lambda stub, wait: stub.CorrectUsage(request, timeout=wait))
    data = correction_data(response.correction) | {"already_there": response.already_there}
    if json_:
        print_json(data)
        return
    console().print(
        f"{data['kind']} of {data['request_id']}: {data['amount']} {data['currency']}, correction"
        f" {data['correction_id']} at position {data['position']}"
        f"{' (it was there already)' if response.already_there else ''}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


_KINDS = (
    usage_pb2.CORRECTION_KIND_CREDIT,
    usage_pb2.CORRECTION_KIND_CHARGE,
    usage_pb2.CORRECTION_KIND_REVERSE,
    usage_pb2.CORRECTION_KIND_SETTLE,
)
