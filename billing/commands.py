"""`kvtier usage`: reports, invoices and the ledger's proof, over gRPC from the billing service.

Table, CSV and JSON are three spellings of the same data. JSON is one object on standard output and
nothing else; errors go to standard error with exit status 1 (2 for a wrong command line).
"""

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

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
from billing.correct_command import correct
from billing.proof_commands import add_proof_commands
from billing.report import DIMENSIONS
from billing.statement import (
    REPORT_FIGURES,
    book_data,
    correction_rows,
    entry_data,
    invoice_data,
    report_data,
)
from billing.tables import show_book, show_entry, show_invoice, show_report
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
    group_by = [name.strip() for name in _text("--by", by).split(",") if name.strip()]
    request = usage_pb2.GetUsageRequest(
        tenant_id=_text("--tenant", tenant),
        project_id=_text("--project", project),
        group_by=group_by,
    )
    _set_period(request, from_, to)
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
    request = usage_pb2.GetInvoiceRequest(tenant_id=_text("--tenant", tenant))
    _set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.GetInvoice(request, timeout=wait))
    data = invoice_data(response.invoice)
    match _format(format_, json_):
        case Format.JSON:
            print_json(data)
        case Format.CSV:
            keys = ("tenant", *_LINE_KEYS, "currency")
            extra = {"tenant": data["tenant"], "currency": data["currency"]}
            _print_csv(
                keys, [{**line, **extra} for line in (*data["lines"], *correction_rows(data))]
            )
        case Format.TABLE:
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
        tenant_id=_text("--tenant", tenant),
        project_id=_text("--project", project),
        id=_text("ID", id_),
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


@app.command()
def prices(json_: JsonOption = False, address: Address = DEFAULT_ADDRESS) -> None:
    """The price book that new events are rated with."""
    request = usage_pb2.GetPriceBookRequest()
    response = call_billing(address, lambda stub, wait: stub.GetPriceBook(request, timeout=wait))
    data = book_data(response)
    if json_:
        print_json(data)
    else:
        show_book(console(), data)


_LINE_KEYS = (
    "model",
    "token_class",
    "cache_write_ttl_class",
    "quantity_tokens",
    "unit_price",
    "unit_tokens",
    "amount",
    "price_book_version",
)


def _set_period(
    request: usage_pb2.GetUsageRequest | usage_pb2.GetInvoiceRequest, start: str, end: str
) -> None:
    if start:
        request.start_time.CopyFrom(_timestamp("--from", start))
    if end:
        request.end_time.CopyFrom(_timestamp("--to", end))


def _timestamp(option: str, text: str) -> Timestamp:
    timestamp = Timestamp()
    try:
        time = datetime.fromisoformat(text)
        # In another zone, the first and the last hours of the calendar lie outside of it.
        timestamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text} is not a time; write 2026-11-01 or 2026-11-01T08:00:00Z", param_hint=option
        ) from None
    return timestamp


def _text(option: str, text: str) -> str:
    """`text`, unless the shell gave bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("not UTF-8 text", param_hint=option) from None
    return text


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


add_proof_commands(app)
app.command(short_help="Put a request's bill right.")(correct)
