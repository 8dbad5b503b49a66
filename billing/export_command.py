"""`kvtier usage export`: a period's charges as a file, in kvtier's own columns or in FOCUS'."""

import sys
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from billing.client import call_billing
from billing.command_line import DEFAULT_ADDRESS, Address, From, To
from billing.command_values import option_text, set_period
from billing.focus import FOCUS_COLUMNS, FOCUS_VERSION, focus_row
from billing.table_files import ExportError, parquet_bytes, write_csv, write_json
from billing.wire_charges import CHARGE_KEYS, charge_data
from kvtier.v1 import usage_pb2

__all__ = ["add_export_command"]

_CHARGE_COLUMNS: dict[str, type] = {
    name: {
        "day": date,
        "quantity": int,
        "unit_tokens": int,
        "unit_price": Decimal,
        "amount": Decimal,
    }.get(name, str)
    for name in CHARGE_KEYS
}


class FileFormat(Enum):
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class Schema(Enum):
    KVTIER = "kvtier"
    FOCUS = "focus"


def add_export_command(app: typer.Typer) -> None:
    app.command(short_help="Charges by day as a file: CSV, JSON, Parquet; FOCUS columns.")(export)


def export(
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    project: Annotated[str, typer.Option(help="Only this project; needs --tenant.")] = "",
    from_: From = "",
    to: To = "",
    schema: Annotated[
        Schema, typer.Option(help=f"Columns: kvtier's own, or those of FOCUS {FOCUS_VERSION}.")
    ] = Schema.KVTIER,
    format_: Annotated[FileFormat, typer.Option("--format", help="Of the file.")] = FileFormat.CSV,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file; standard output where not given.")
    ] = None,
    provider: Annotated[str, typer.Option(help="FOCUS: who sells.")] = "kvtier",
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """A period's charges: a row for each day of UTC, tenant, project, key, model, token class and
    price, with the exact amount. They add up to the report of the period to the last digit."""
    request = usage_pb2.ListChargesRequest(
        tenant_id=option_text("--tenant", tenant), project_id=option_text("--project", project)
    )
    set_period(request, from_, to)
    response = call_billing(address, lambda stub, wait: stub.ListCharges(request, timeout=wait))
    rows = [charge_data(charge) for charge in response.charges]
    columns: dict[str, type] = _CHARGE_COLUMNS
    if schema is Schema.FOCUS:
        rows, columns = [focus_row(row, provider) for row in rows], dict(FOCUS_COLUMNS)
    metadata = {"schema": schema.value} | (
        {"focus_version": FOCUS_VERSION} if schema is Schema.FOCUS else {}
    )
    try:
        _write(out, format_, columns, rows, metadata)
    except ExportError as error:
        print(f"kvtier usage: {error.reason}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        if out is None:
            raise  # who reads standard output went away
        print(f"kvtier usage: {out} cannot be written: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
    if response.unrated_request_count:
        print(
            f"kvtier usage: {response.unrated_request_count:,} requests have no price yet and are"
            " in no row: no version of the price book covers them",
            file=sys.stderr,
        )


def _write(
    out: Path | None,
    format_: FileFormat,
    columns: dict[str, type],
    rows: list[dict[str, Any]],
    metadata: dict[str, str],
) -> None:
    if format_ is FileFormat.PARQUET:
        content = parquet_bytes(columns, rows, metadata)
        if out is not None:
            out.write_bytes(content)
        else:
            sys.stdout.buffer.write(content)
    elif out is not None:
        with out.open("w", encoding="utf-8", newline="") as file:
            _write_text(file, format_, columns, rows, metadata)
    else:
        _write_text(sys.stdout, format_, columns, rows, metadata)


def _write_text(
    out: Any,
    format_: FileFormat,
    columns: dict[str, type],
    rows: list[dict[str, Any]],
    metadata: dict[str, str],
) -> None:
    if format_ is FileFormat.JSON:
        write_json(out, rows, **metadata)
    else:
        write_csv(out, list(columns), rows)
