"""`kvtier usage`: reports, invoices and the ledger's proof, over gRPC from the billing service.

Table, CSV and JSON are three spellings of the same data. JSON is one object on standard output and
nothing else; errors go to standard error with exit status 1 (2 for a wrong command line).
"""

import csv
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from billing.client import call_billing
from billing.command_line import (
    DEFAULT_ADDRESS,
    Address,
    Format,
    FormatOption,
    From,
    JsonOption,
    To,
    console,
    print_json,
)
from billing.command_values import option_text, set_period
from billing.price_commands import add_price_commands
from billing.report import DIMENSIONS
from billing.statement import (
    REPORT_FIGURES,
    invoice_data,
    invoice_rows,
    report_data,
    verification_data,
)
from billing.tables import show_invoice, show_report, show_verification
from kvtier.v1 import usage_pb2

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Reports, invoices and the ledger's proof.")

VERIFY_SECONDS_MAX = 3_600.0


@app.command()
def report(
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    from_: From = "",
    to: To = "",
    by: Annotated[
        str, typer.Option(help=f"Columns to group by, of {', '.join(DIMENSIONS)}.")
    ] = "tenant,model",
    format_: FormatOption = Format.TABLE,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """What was used, what it costs, and what cache hits saved."""
    group_by = [name.strip() for name in option_text("--by", by).split(",") if name.strip()]
    request = usage_pb2.GetUsageRequest(
        tenant_id=option_text("--tenant", tenant), group_by=group_by
    )
    set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.GetUsage(request, timeout=wait))
    data = report_data(response, group_by)
    keys = (*group_by, *REPORT_FIGURES)
    match _format(format_, json_):
        case Format.JSON:
            print_json(data)
        case Format.CSV:
            _print_csv(keys, [row | _csv_writes(row) for row in data["rows"]])
        case Format.TABLE:
            show_report(console(), data, keys)


@app.command(short_help="One tenant's statement of a period.")
def invoice(
    tenant: Annotated[str, typer.Option(help="Whose invoice.")],
    from_: From = "",
    to: To = "",
    format_: FormatOption = Format.TABLE,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """One tenant's statement: lines by model, token class and price, and their exact sum."""
    request = usage_pb2.GetInvoiceRequest(tenant_id=option_text("--tenant", tenant))
    set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.GetInvoice(request, timeout=wait))
    data = invoice_data(response.invoice)
    match _format(format_, json_):
        case Format.JSON:
            print_json(data)
        case Format.CSV:
            keys = ("tenant", *_LINE_KEYS, "currency")
            extra = {"tenant": data["tenant"], "currency": data["currency"]}
            _print_csv(keys, [{**line, **extra} for line in invoice_rows(data)])
        case Format.TABLE:
            show_invoice(console(), data)


@app.command(short_help="Prove that the ledger holds.")
def verify(json_: JsonOption = False, address: Address = DEFAULT_ADDRESS) -> None:
    """Walks the ledger's hash chain and recomputes every amount; exit status 1 when it breaks."""
    data = verification_data(
        call_billing(
            address,
            lambda stub, wait: stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=wait),
            VERIFY_SECONDS_MAX,
        )
    )
    if json_:
        print_json(data)
    else:
        show_verification(console(), data)
    if not data["verified"]:
        raise typer.Exit(1)


_LINE_KEYS = (
    "model",
    "token_class",
    "cache_write_ttl_class",
    "quantity_tokens",
    "unit_price",
    "unit_tokens",
    "amount",
    "price_book_version",
    "rule",
)


def _format(chosen: Format, json_: bool) -> Format:
    return Format.JSON if json_ else chosen


def _csv_writes(row: dict[str, Any]) -> dict[str, str]:
    """In one cell: tokens by TTL class, "1h=640;5m=64"."""
    writes = row["cache_writes"].items()
    return {"cache_writes": ";".join(f"{name}={count}" for name, count in writes)}


def _print_csv(keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


add_price_commands(app)
