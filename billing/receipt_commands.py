"""`kvtier receipt`: get a request's receipt, look at it, check it without any service.

Exit status 1 when a receipt does not hold or a service says no, 2 for a wrong command line. JSON is
one object on standard output and nothing else.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import grpc
import typer

from billing.client import call_billing
from billing.command_line import DEFAULT_ADDRESS, Address, console, print_json
from billing.command_values import option_public_key, option_text
from billing.errors import PriceBookError
from billing.price_book import PriceBook
from billing.price_book_file import load_price_book
from billing.receipt import ReceiptFormError, file_bytes, parsed
from billing.receipt_check import Given, Report, check_receipt
from billing.receipt_files import read_receipt, read_tokens, write_receipt
from billing.receipt_ledger import ledger_finding
from billing.receipt_view import receipt_data, report_data, show_receipt, show_report
from kvtier.cli.channel import open_channel
from kvtier.cli.problems import spoken
from kvtier.errors import read_error
from kvtier.prompt_proof import commitment
from kvtier.v1 import (
    receipt_opening_pb2,
    receipt_opening_pb2_grpc,
    receipt_pb2,
    receipt_pb2_grpc,
    usage_pb2,
)

__all__ = ["app"]

DEFAULT_WORKER = "127.0.0.1:7421"
OPEN_SECONDS_MAX = 30.0

File = Annotated[Path, typer.Argument(metavar="FILE", help="A receipt.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead.")]
Worker = Annotated[
    str,
    typer.Option(
        "--worker",
        help="A worker, HOST:PORT: what opens digests comes from there.",
        envvar="KVTIER_INFERENCE_ADDRESS",
    ),
]

app = typer.Typer(no_args_is_help=True, help="A request's bill, provable without any service.")


@app.command(short_help="A request's receipt, from billing.")
def get(
    id_: Annotated[
        str, typer.Argument(metavar="REQUEST", help="A request's id, or the client's own.")
    ],
    tenant: Annotated[str, typer.Option(help="Whose request; a tenant names itself.")] = "",
    project: Annotated[str, typer.Option(help="Of the tenant; needs --tenant.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this file.")] = None,
    sealed: Annotated[
        bool,
        typer.Option("--sealed", help="Without what opens its digests: to show to others."),
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    worker: Worker = DEFAULT_WORKER,
) -> None:
    """The receipt of a request, signed as the ledger stands now, with corrections made until then.

    What opens its digests, so that tokens can be checked against them, comes from a worker, which
    tells it to the tenant alone. Keep the file: it is all that is needed to check it.
    """
    request = receipt_pb2.GetReceiptRequest(
        tenant_id=option_text("--tenant", tenant),
        project_id=option_text("--project", project),
        id=option_text("REQUEST", id_),
    )
    answer = call_billing(
        address,
        lambda stub, wait: stub.GetReceipt(request, timeout=wait),
        stub=receipt_pb2_grpc.ReceiptServiceStub,
        command="receipt",
    )
    raw = answer.receipt if sealed else _opened(answer.receipt, worker)
    if out is None:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        return
    write_receipt(out, raw)
    data = parsed(raw)
    console().print(
        f"receipt of {data['receipt']['event']['request_id']}:"
        f" {data['receipt']['owed']} {data['receipt']['currency']}, position"
        f" {data['receipt']['entry']['position']:,}, by key {data['receipt']['key']}, in {out}"
        f"{'' if 'opening' in data else ' (sealed)'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command(short_help="What a receipt says.")
def show(
    file: File,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="A row for each block, not for each run.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """What a receipt says: tokens, prices, amount, where each block came from. Ends with exit
    status 1 where it does not hold; `kvtier receipt verify` says why."""
    report = check_receipt(read_receipt(file))
    broken = {each.check for each in report.findings if each.result.value == "failed"}
    if report.receipt is None or broken & {"form", "event"}:
        show_report(console(), report)
        raise typer.Exit(1)
    data = receipt_data(report.receipt, sealed=report.sealed)
    if json_:
        print_json(data | {"verified": report.verified})
    else:
        show_receipt(console(), data, blocks=blocks)
    if not report.verified:
        typer.echo(f"kvtier receipt: it does NOT hold; see kvtier receipt verify {file}", err=True)
        raise typer.Exit(1)


@app.command(short_help="Check a receipt, without any service.")
def verify(
    file: File,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", help="The prompt's token ids, as JSON: a list, or token_ids."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="The ledger's public key, as it was published (PEM)."),
    ] = None,
    book: Annotated[
        Path | None, typer.Option("--book", help="A price book: must have the very prices.")
    ] = None,
    ledger: Annotated[
        str,
        typer.Option("--ledger", help="Also ask this billing service, HOST:PORT, for the entry."),
    ] = "",
    json_: JsonOption = False,
) -> None:
    """Recomputes everything that a receipt says from the file alone: the signature, the keys, each
    line from the price version in it, the amount, the entry's hash in the ledger's chain, and with
    --tokens the digests of the prompt, block by block. Says of each what does not hold, and where.
    """
    given = Given(
        public_key=option_public_key(public_key) if public_key is not None else None,
        token_ids=read_tokens(tokens) if tokens is not None else None,
        book=_book(book) if book is not None else None,
    )
    report = check_receipt(read_receipt(file), given)
    if ledger:
        report = _with_ledger(report, ledger)
    if json_:
        print_json(report_data(report))
    else:
        show_report(console(), report)
    if not report.verified:
        raise typer.Exit(1)


@app.command(short_help="A receipt to show to others.")
def seal(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Write it to this file.")],
) -> None:
    """Takes out what opens a receipt's digests. What is left proves the bill as before, and lets
    nobody test what the prompt was."""
    try:
        data = parsed(read_receipt(file))
        raw = file_bytes(data["receipt"], bytes.fromhex(data["signature"]))
    except (ReceiptFormError, KeyError, TypeError, ValueError):
        typer.echo(f"kvtier receipt: {file} is no receipt; see kvtier receipt verify", err=True)
        raise typer.Exit(1) from None
    write_receipt(out, raw)


def _opened(raw: bytes, worker: str) -> bytes:
    """With its opening, where there is something to open. Ends the command without."""
    data = parsed(raw)
    event = data["receipt"]["event"]
    if "proof" not in event:
        return raw
    request = receipt_opening_pb2.OpenReceiptRequest(
        tenant_id=event["tenant_id"],
        project_id=event.get("project_id", ""),
        user_id=event.get("user_id", ""),
        request_id=event["request_id"],
    )
    with open_channel(worker) as channel:
        try:
            stub = receipt_opening_pb2_grpc.ReceiptOpeningServiceStub(channel)
            salt = stub.OpenReceipt(request, timeout=OPEN_SECONDS_MAX).salt
        except grpc.RpcError as error:
            typer.echo(f"kvtier receipt: {_explain(error, worker)}", err=True)
            raise typer.Exit(1) from None
    if commitment(salt).hex() != event["proof"]["commitment"]:
        typer.echo(
            f"kvtier receipt: OTHER_SECRET: the worker at {worker} has another secret than the one"
            " that served the request, and cannot open its digests; name another with --worker, or"
            " take it --sealed",
            err=True,
        )
        raise typer.Exit(1)
    return file_bytes(data["receipt"], bytes.fromhex(data["signature"]), salt)


def _explain(error: grpc.RpcError, worker: str) -> str:
    return spoken(
        read_error(error),
        {
            grpc.StatusCode.UNAVAILABLE: (
                f"WORKER_UNREACHABLE: no worker answers at {worker}, and the receipt's digests"
                " cannot be opened; name another with --worker, or take the receipt --sealed"
            ),
            grpc.StatusCode.DEADLINE_EXCEEDED: (
                f"DEADLINE: the worker at {worker} did not answer in time"
            ),
        },
    )


def _with_ledger(report: Report, address: str) -> Report:
    """Also what the service at `address` has of the request."""
    broken = {each.check for each in report.findings if each.result.value == "failed"}
    if report.receipt is None or broken & {"form", "event"}:
        return report
    event = report.receipt["event"]
    request = usage_pb2.FindUsageEventsRequest(
        tenant_id=event["tenant_id"],
        project_id=event.get("project_id", ""),
        id=event["request_id"],
    )
    asked = usage_pb2.GetLedgerKeysRequest()
    entries = call_billing(
        address,
        lambda stub, wait: stub.FindUsageEvents(request, timeout=wait),
        command="receipt",
    )
    keys = call_billing(
        address, lambda stub, wait: stub.GetLedgerKeys(asked, timeout=wait), command="receipt"
    )
    finding = ledger_finding(report.receipt, entries.entries, keys.keys)
    findings = (*report.findings, finding)
    return replace(report, findings=findings)


def _book(path: Path) -> PriceBook:
    try:
        return load_price_book(path)
    except PriceBookError as error:
        raise typer.BadParameter(str(error), param_hint="--book") from None
