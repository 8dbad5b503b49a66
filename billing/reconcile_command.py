"""`kvtier usage reconcile`: engine, cache, ledger and invoice, compared token for token.

Differences are printed as they come, so that a month of them needs no memory here either. The JSON
is one object all the same. Exit status 1 when something is unexplained.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from billing.client import call_billing
from billing.command_line import DEFAULT_ADDRESS, Address, From, JsonOption, To, console
from billing.command_values import set_period
from billing.statement import token_data
from kvtier.v1 import attestation_pb2 as pb
from kvtier.v1 import attestation_pb2_grpc

__all__ = ["add_reconcile_command"]

RECONCILE_SECONDS_MAX = 3_600.0

SHOWN_MAX = 100
"""Differences of each sort, unexplained first, that a table names one by one."""


def add_reconcile_command(app: typer.Typer) -> None:
    app.command(short_help="Compare engine, cache, ledger and invoice.")(reconcile)


def reconcile(
    from_: From = "",
    to: To = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Compares what workers say was hit, what cache services attest to have served, what was posted
    and what statements say, and explains every difference; exit status 1 when one has no
    explanation."""
    request = pb.ReconcileUsageRequest(tenant_id=tenant)
    set_period(request, from_, to)

    def call(stub: Any, seconds: float) -> pb.ReconcileSummary:
        answers = stub.ReconcileUsage(request, timeout=seconds)
        return _print_json(answers) if json_ else _show(answers)

    service = attestation_pb2_grpc.AttestationServiceStub
    summary = call_billing(address, call, RECONCILE_SECONDS_MAX, stub=service)
    if summary.unexplained_count:
        raise typer.Exit(1)


def _print_json(answers: Iterator[pb.ReconcileUsageResponse]) -> pb.ReconcileSummary:
    """Written in pieces."""
    summary, first = pb.ReconcileSummary(), True
    for answer in answers:
        for difference in answer.differences:
            opening = '{\n  "differences": [\n    ' if first else ",\n    "
            print(opening, json.dumps(_data(difference), ensure_ascii=False), sep="", end="")
            first = False
        if answer.HasField("summary"):
            summary = answer.summary
    print('{\n  "differences": [],' if first else "\n  ],")
    rest = json.dumps(_summary_data(summary), indent=2, ensure_ascii=False)
    print(rest.removeprefix("{\n"))
    return summary


def _data(difference: pb.UsageDifference) -> dict[str, Any]:
    """Null is where there is no such figure."""
    return {
        "kind": difference.kind,
        "explained": difference.explained,
        "tenant": difference.tenant_id,
        "request_id": difference.request_id,
        "lease_id": difference.lease_id,
        "subject": difference.subject,
        "expected": difference.expected if difference.HasField("expected") else None,
        "found": difference.found if difference.HasField("found") else None,
        "explanation": difference.explanation,
    }


def _summary_data(summary: pb.ReconcileSummary) -> dict[str, Any]:
    return {
        "requests": summary.request_count,
        "leases": summary.lease_count,
        "difference_count": summary.difference_count,
        "unexplained_count": summary.unexplained_count,
        **token_data(summary.tokens),
    }


def _show(answers: Iterator[pb.ReconcileUsageResponse]) -> pb.ReconcileSummary:
    summary = pb.ReconcileSummary()
    kinds: Counter[tuple[bool, str]] = Counter()
    shown: dict[bool, list[pb.UsageDifference]] = {False: [], True: []}
    for answer in answers:
        for each in answer.differences:
            kinds[each.explained, each.kind] += 1
            if len(shown[each.explained]) < SHOWN_MAX:
                shown[each.explained].append(each)
        if answer.HasField("summary"):
            summary = answer.summary
    out = console()
    for explained, title in ((False, "Unexplained"), (True, "Explained")):
        if shown[explained]:
            out.print(_table(title, shown[explained]))
            more = sum(count for (e, _), count in kinds.items() if e is explained)
            if more > len(shown[explained]):
                out.print(f"and {more - len(shown[explained]):,} more; --json has all")
    for (explained, kind), count in sorted(kinds.items()):
        out.print(f"{count:>9,}  {kind}{'' if explained else '  UNEXPLAINED'}")
    hits = summary.tokens.hit_tokens_by_tier
    out.print(
        f"{summary.request_count:,} requests, {summary.lease_count:,} leases;"
        f" {summary.tokens.hit_tokens:,} hit tokens, {hits.gpu:,} of them in GPU pages, which need"
        f" no lease; {summary.difference_count:,} differences, {summary.unexplained_count:,}"
        " unexplained"
    )
    return summary


def _table(title: str, differences: list[pb.UsageDifference]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("kind", no_wrap=True)
    table.add_column("request", overflow="fold")
    table.add_column("lease", overflow="fold")
    table.add_column("of")
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for each in differences:
        table.add_row(
            each.kind,
            each.request_id,
            each.lease_id,
            each.subject,
            f"{each.expected:,}" if each.HasField("expected") else "",
            f"{each.found:,}" if each.HasField("found") else "",
            each.explanation,
        )
    return table
