"""`kvtier cache ...`: look into a running cache service.

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
from rich.filesize import decimal
from rich.table import Table

from kvtier.errors import WireError, read_error
from kvtier.v1 import block_pb2, cache_pb2, cache_pb2_grpc

__all__ = ["app"]

DEFAULT_ADDRESS = "127.0.0.1:7411"
CALL_SECONDS_MAX = 5.0

app = typer.Typer(no_args_is_help=True, help="Look into the cache.")


@app.callback()
def cache() -> None:
    """Look into the cache."""


@app.command(short_help="What the cache holds and did.")
def stats(
    address: Annotated[
        str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")
    ] = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """What the cache holds, what it did since its start, what its last recovery found."""
    response = _get_stats(address)
    if as_json:
        print(json.dumps(stats_data(response), indent=2))
        return
    console = Console()
    console.print(_tiers_table(response))
    console.print(_totals_table(response))


def stats_data(response: cache_pb2.GetStatsResponse) -> dict[str, Any]:
    """The stats as plain data: field names as in the contract, counts as numbers."""
    data: dict[str, Any] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Protobuf's JSON spells 64-bit integers as text; programs that read this want numbers.
    data["counters"] = {name: response.counters[name] for name in sorted(response.counters)}
    data["tiers"] = [_tier_data(tier) for tier in response.tiers]
    data["pending_write_count"] = response.pending_write_count
    data["recovery"] = _plain(response.recovery)
    return data


def _tier_data(tier: cache_pb2.TierStats) -> dict[str, Any]:
    return _plain(tier) | {"tier": block_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower()}


def _plain(message: Message) -> dict[str, Any]:
    """Fields in the contract's order; for messages of plain numbers."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _get_stats(address: str) -> cache_pb2.GetStatsResponse:
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            return cache_pb2_grpc.CacheServiceStub(channel).GetStats(
                cache_pb2.GetStatsRequest(), timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            wire = read_error(error)
            print(f"kvtier cache: {_explain(wire, address)}", file=sys.stderr)
            raise typer.Exit(1) from None


def _explain(wire: WireError, address: str) -> str:
    if wire.reason:
        return f"{wire.reason}: {wire.message}"
    if wire.code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"CACHE_UNREACHABLE: no cache service answers at {address}; start it (kvtier up, or"
            " python -m cache_service) or name another with --address"
        )
    if wire.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"DEADLINE: the cache service at {address} did not answer in time"
    return f"{wire.code.name}: {wire.message}"


def _tiers_table(response: cache_pb2.GetStatsResponse) -> Table:
    table = Table(title="Tiers", title_justify="left")
    table.add_column("tier")
    for name in ("blocks", "used", "capacity", "full", "written", "read", "evicted"):
        table.add_column(name, justify="right")
    for tier in response.tiers:
        share = tier.used_bytes / tier.capacity_bytes if tier.capacity_bytes else 0.0
        table.add_row(
            block_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower(),
            f"{tier.block_count:,}",
            decimal(tier.used_bytes),
            decimal(tier.capacity_bytes),
            f"{share:.0%}",
            decimal(tier.written_bytes),
            decimal(tier.read_bytes),
            f"{tier.evicted_count:,}",
        )
    return table


def _totals_table(response: cache_pb2.GetStatsResponse) -> Table:
    started = response.start_time.ToDatetime().isoformat(sep=" ", timespec="seconds")
    table = Table(title=f"Since {started} UTC", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    live = {
        "sessions open": response.session_count,
        "leases live": response.lease_count,
        "reservations live": response.reservation_count,
        "blocks waiting for the SSD": response.pending_write_count,
    }
    recovery = {
        "recovered blocks kept": response.recovery.kept_count,
        "recovered blocks dropped": response.recovery.dropped_count,
        "recovered blocks repaired": response.recovery.repaired_count,
    }
    totals = {name.replace("_", " "): n for name, n in sorted(response.counters.items())}
    for section in (live, totals, recovery):
        for name, count in section.items():
            table.add_row(name, f"{count:,}")
        table.add_section()
    table.add_row("recovery took", f"{response.recovery.duration_seconds:,.3f} s")
    return table
