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
    InvoiceFormat,
    JsonOption,
    To,
    console,
    print_json,
)
from billing.command_values import option_text, set_period
from billing.correct_command import correct
from billing.export_command import add_export_command
from billing.price_commands import add_price_commands
from billing.proof_commands import add_proof_commands
from billing.reconcile_command import add_reconcile_command
from billing.report import DIMENSIONS
from billing.statement import (
    REPORT_FIGURES,
    entry_data,
    invoice_data,
    invoice_rows,
    report_data,
)
from billing.tables import show_entry, show_invoice, show_report
from kvtier.v1 import usage_pb2

__all__ = ["app"]

Tenant = Annotated[str, typer.Option(help="Only this tenant.")]
Project = Annotated[str, typer.Option(help="Only this project; needs --tenant.")]

app = typer.Typer(no_args_is_help=True, help="Reports, invoices and the ledger's proof.")


@app.command()
def report(
    tenant: Tenant = "",
    project: Project = "",
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
        tenant_id=option_text("--tenant", tenant),
        project_id=option_text("--project", project),
        group_by=group_by,
    )
    set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.GetUsage(request, timeout=wait))
    data = report_data(response, group_by)
    keys = (*group_by, *REPORT_FIGURES)
    match _format(format_, json_):
        case Format.JSON:
            print_json(data)
        case Format.CSV:
            _print_csv(keys, [row | _csv_pairs(row) for row in data["rows"]])
        case Format.TABLE:
            show_report(console(), data, keys)


@app.command(short_help="One tenant's statement of a period.")
def invoice(
    tenant: Annotated[str, typer.Option(help="Whose invoice.")],
    from_: From = "",
    to: To = "",
    format_: Annotated[
        InvoiceFormat,
        typer.Option("--format", help="How to print; html: a page with a chart, for paper too."),
    ] = InvoiceFormat.TABLE,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """One tenant's statement: lines by model, token class and price, and their exact sum."""
    request = usage_pb2.GetInvoiceRequest(tenant_id=option_text("--tenant", tenant))
    set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.GetInvoice(request, timeout=wait))
    data = invoice_data(response.invoice)
    match InvoiceFormat.JSON if json_ else format_:
        case InvoiceFormat.JSON:
            print_json(data)
        case InvoiceFormat.HTML:
            # Loading templates takes longer than all of the other formats.
            from billing.invoice_page import invoice_page

            print(invoice_page(data, _by_day(address, request)), end="")
        case InvoiceFormat.CSV:
            keys = ("tenant", *_LINE_KEYS, "currency")
            extra = {"tenant": data["tenant"], "currency": data["currency"]}
            _print_csv(keys, [{**line, **extra} for line in invoice_rows(data)])
        case InvoiceFormat.TABLE:
            show_invoice(console(), data)


@app.command(short_help="What the ledger has of one request.")
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A request's id, or the client's own.")],
    tenant: Tenant = "",
    project: Project = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """The usage event of a request, and what it costs, by its id or by the client's own name for
    it (client_request_id)."""
    request = usage_pb2.FindUsageEventsRequest(
        tenant_id=option_text("--tenant", tenant),
        project_id=option_text("--project", project),
        id=option_text("ID", id_),
    )
    response = call_billing(address, lambda stub, wait: stub.FindUsageEvents(request, timeout=wait))
    found = [entry_data(entry) for entry in response.entries]
    if json_:
        print_json({"entries": found})
        return
    for number, data in enumerate(found):
        if number:
            console().print()
        show_entry(console(), data)


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


def _by_day(address: str, asked: usage_pb2.GetInvoiceRequest) -> list[dict[str, Any]]:
    """The report by day of an invoice's tenant and period."""
    request = usage_pb2.GetUsageRequest(tenant_id=asked.tenant_id, group_by=["day"])
    for name in ("start_time", "end_time"):
        if asked.HasField(name):
            getattr(request, name).CopyFrom(getattr(asked, name))
    response = call_billing(address, lambda stub, wait: stub.GetUsage(request, timeout=wait))
    return report_data(response, ["day"])["rows"]


def _format(chosen: Format, json_: bool) -> Format:
    return Format.JSON if json_ else chosen


def _csv_pairs(row: dict[str, Any]) -> dict[str, str]:
    """In a cell each: tokens by TTL class, "1h=640;5m=64"; token-seconds by tier."""
    return {
        key: ";".join(f"{name}={count}" for name, count in row[key].items())
        for key in ("cache_writes", "storage_token_seconds")
        if key in row
    }


def _print_csv(keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


add_reconcile_command(app)
add_proof_commands(app)
add_price_commands(app)
add_export_command(app)
app.command(short_help="Put a request's bill right.")(correct)
