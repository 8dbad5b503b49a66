"""`kvtier cache ...`: look into a running cache service, and steer it.

Standard output has the answer alone, a table or with --json one object; everything else goes to
standard error. Exit status 1 when the service cannot be asked.
"""

import json
import sys
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from cache_service.audit.commands import audit_app
from cache_service.command_errors import cache_problem
from cache_service.events.printing import (
    HEADER,
    json_lines,
    messages,
    position_of,
    text_lines,
)
from cache_service.explain_command import explain
from cache_service.owner_tables import owners_data, owners_table, quotas_table
from cache_service.pin_commands import pin, pins, unpin
from cache_service.prewarm_command import prewarm
from cache_service.purge_command import purge
from cache_service.stats_tables import host_table, ssd_table, tiers_table, totals_table
from cache_service.tree_command import tree
from cache_service.verify_command import outcome_data, outcome_text, verified
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.v1 import block_pb2, cache_pb2, cache_pb2_grpc, events_pb2

__all__ = ["app"]

OWNERS_MAX = 10_000
OWNERS_SHOWN = 40

DEFAULT_ADDRESS = "127.0.0.1:7411"
CALL_SECONDS_MAX = 5.0

app = typer.Typer(no_args_is_help=True, help="Look into the cache.")


app.add_typer(audit_app, name="audit", help="The record of operators' calls.")


@app.callback()
def cache() -> None:
    """Look into the cache."""


app.command(short_help="Why a prompt or a request hits or misses.")(explain)
app.command(short_help="What is cached, as a tree.")(tree)
app.command(short_help="Keep a prompt's beginning cached until a time.")(pin)
app.command(short_help="End a pin.")(unpin)
app.command(short_help="What is pinned, for whom, until when.")(pins)
app.command(short_help="Bring a prompt's beginning into host memory.")(prewarm)
app.command(short_help="Take blocks out of every tier, with a receipt.")(purge)


@app.command(short_help="What the cache holds and did.")
def stats(
    address: Annotated[
        str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")
    ] = DEFAULT_ADDRESS,
    owners: Annotated[
        bool, typer.Option("--owners", help="Who owns the blocks, those with most first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """What the cache holds, what it did since its start, what its last recovery found."""
    listed_max = (OWNERS_MAX if as_json else OWNERS_SHOWN) if owners else 0
    response = _get_stats(address, listed_max)
    if as_json:
        data = owners_data(response) if owners else stats_data(response)
        print(json.dumps(data, indent=2))
        return
    console = Console()
    if owners:
        console.print(owners_table(response))
        if response.owners.quotas:
            console.print(quotas_table(response))
        return
    console.print(tiers_table(response))
    console.print(host_table(response))
    console.print(totals_table(response))
    if response.HasField("ssd_codec"):
        console.print(ssd_table(response))


@app.command()
def verify(
    address: Annotated[
        str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")
    ] = DEFAULT_ADDRESS,
    bytes_per_second: Annotated[
        int, typer.Option(min=0, help="What it may read; 0 for as fast as the disk gives.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Check every block on the SSD now; drop what is bad. Ctrl-C stops it."""
    try:
        last = verified(address, bytes_per_second, Console(stderr=True, quiet=as_json))
    except grpc.RpcError as error:
        print(f"kvtier cache: {cache_problem(read_error(error), address)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("kvtier cache: stopped; what was dropped stays dropped", file=sys.stderr)
        raise typer.Exit(130) from None
    print(json.dumps(outcome_data(last), indent=2) if as_json else outcome_text(last))
    if last.progress.corrupt_count or last.progress.unreadable_count or not last.done:
        raise typer.Exit(1)


@app.command(short_help="What the tiers gain and lose, as it happens.")
def events(
    address: Annotated[
        str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")
    ] = DEFAULT_ADDRESS,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Begin with every block that is cached.")
    ] = False,
    after: Annotated[
        str, typer.Option(help="Go on from where another one ended: INSTANCE:SEQUENCE.")
    ] = "",
    follow: Annotated[
        bool, typer.Option(help="Go on with what happens; else end when all is told.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What the tiers gain and lose, a line each. Ctrl-C ends it and says where to go on."""
    request, place = _watch_request(after, snapshot), None
    if not as_json:
        print(HEADER, flush=True)
    try:
        for message in messages(address, request, follow):
            place = message.position
            for line in json_lines(message) if as_json else text_lines(message):
                print(line)
            sys.stdout.flush()
    except grpc.RpcError as error:
        print(f"kvtier cache: {cache_problem(read_error(error), address)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        pass
    if place is not None:
        print(f"go on with --after {place.instance_id}:{place.sequence}", file=sys.stderr)


def _watch_request(after: str, snapshot: bool) -> events_pb2.WatchEventsRequest:
    if not after:
        return events_pb2.WatchEventsRequest(snapshot=snapshot)
    if snapshot:
        raise typer.BadParameter("begin with --snapshot or --after, not with both")
    try:
        return events_pb2.WatchEventsRequest(after=position_of(after))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after") from None


def stats_data(response: cache_pb2.GetStatsResponse) -> dict[str, Any]:
    """The stats as plain data: field names as in the contract, counts as numbers."""
    data: dict[str, Any] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Protobuf's JSON spells 64-bit integers as text; programs that read this want numbers.
    data["counters"] = {name: response.counters[name] for name in sorted(response.counters)}
    data["tiers"] = [_tier_data(tier) for tier in response.tiers]
    data["pending_write_count"] = response.pending_write_count
    data["recovery"] = _plain(response.recovery) | {"problems": list(response.recovery.problems)}
    data["scrub"] = _scrub_data(response.scrub)
    data["ssd_codec"] = _plain(response.ssd_codec)
    data["admission"] = _plain(response.admission)
    data["ssd_files"] = _files_data(response.ssd_files)
    data["ssd_encryption"] = _plain(response.ssd_encryption)
    memory = response.host_memory
    data["host_memory"] = _plain(memory) | {"classes": [_plain(each) for each in memory.classes]}
    data["index_bytes"] = response.index_bytes
    return data


def _scrub_data(scrub: cache_pb2.ScrubStats) -> dict[str, Any]:
    return {
        "budget_bytes_per_second": scrub.budget_bytes_per_second,
        "pass_count": scrub.pass_count,
        "running": _plain(scrub.running) if scrub.HasField("running") else None,
        "last": _plain(scrub.last) if scrub.HasField("last") else None,
    }


def _files_data(files: cache_pb2.SsdFiles) -> dict[str, Any]:
    data = _plain(files) | {"written_since": None}
    if files.HasField("written_since"):
        data["written_since"] = files.written_since.ToJsonString()
    return data


def _tier_data(tier: cache_pb2.TierStats) -> dict[str, Any]:
    return _plain(tier) | {"tier": block_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower()}


def _plain(message: Message) -> dict[str, Any]:
    """Fields in the contract's order; for messages of plain numbers."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _get_stats(address: str, owners_max: int = 0) -> cache_pb2.GetStatsResponse:
    with open_channel(address) as channel:
        try:
            return cache_pb2_grpc.CacheServiceStub(channel).GetStats(
                cache_pb2.GetStatsRequest(owners_max=owners_max), timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            print(f"kvtier cache: {cache_problem(read_error(error), address)}", file=sys.stderr)
            raise typer.Exit(1) from None
