"""`kvtier cache pin`, `unpin` and `pins`: keep prefixes cached until a time.

Standard output has the answer alone, a table or with --json one object. Exit status 1 when a
service refused or cannot be asked, 2 when the command makes no sense.
"""

import json
import re
import sys
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cache_service.command_ends import fail, misused
from cache_service.command_errors import cache_problem
from cache_service.prefix_choice import (
    BlockOption,
    NamespaceOption,
    PrefixArgument,
    PrefixChoice,
)
from cache_service.prompt_chain import (
    DEFAULT_CACHE,
    DEFAULT_WORKER,
    AdapterOption,
    AddressOption,
    JsonOption,
    ProjectOption,
    RawOption,
    ScopeOption,
    SystemOption,
    TenantOption,
    UserOption,
    WorkerOption,
)
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.v1 import control_pb2 as pb
from kvtier.v1 import control_pb2_grpc

__all__ = ["pin", "pin_data", "pins", "unpin"]

CALL_SECONDS_MAX = 30.0

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "pin": "left",
    "owner": "left",
    "blocks": "right",
    "bytes": "right",
    "cached": "right",
    "SSD": "right",
    "until": "left",
}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def pin(
    prompt: PrefixArgument = "",
    owner: Annotated[str, typer.Option(help="For whom, so that somebody can be asked.")] = "",
    lasts: Annotated[str, typer.Option("--for", help="How long: 90s, 30m, 12h or 7d.")] = "1d",
    block: BlockOption = "",
    namespace: NamespaceOption = "",
    address: AddressOption = DEFAULT_CACHE,
    worker: WorkerOption = DEFAULT_WORKER,
    tenant: TenantOption = "default",
    project: ProjectOption = "",
    user: UserOption = "",
    cache_scope: ScopeOption = None,
    adapter: AdapterOption = "",
    system: SystemOption = "",
    raw: RawOption = False,
    as_json: JsonOption = False,
) -> None:
    """Keep the cached beginning of a prompt cached until a time, in its last tier at least.

    Only what is cached now can be pinned; send the prompt first. Again for the same owner moves the
    end.
    """
    chosen = PrefixChoice(
        prompt, block, namespace, tenant, project, user, cache_scope, system, raw, adapter
    )
    chosen.check("pin")
    if not owner:
        misused("pin", "say for whom with --owner")
    request = pb.PinPrefixRequest(owner=owner, ttl=_duration(lasts))
    end = chosen.end("pin", worker, address)
    request.namespace_id, request.block_hash = end.namespace_id, end.block_hash
    if end.cached_count < end.block_count:
        print(
            f"kvtier cache pin: {end.cached_count} of the prompt's {end.block_count} blocks are"
            " cached and pinned",
            file=sys.stderr,
        )
    with open_channel(address) as channel:
        try:
            made = control_pb2_grpc.ControlServiceStub(channel).PinPrefix(
                request, timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))
    print(json.dumps(pin_data(made.pin), indent=2)) if as_json else _show([made.pin])


def unpin(
    pin_id: Annotated[str, typer.Argument(help="As `kvtier cache pins` lists it.")],
    address: AddressOption = DEFAULT_CACHE,
) -> None:
    """End a pin: its blocks may leave like others."""
    with open_channel(address) as channel:
        try:
            control_pb2_grpc.ControlServiceStub(channel).UnpinPrefix(
                pb.UnpinPrefixRequest(pin_id=pin_id), timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))


def pins(address: AddressOption = DEFAULT_CACHE, as_json: JsonOption = False) -> None:
    """All pins, the next to end first."""
    with open_channel(address) as channel:
        try:
            answers = control_pb2_grpc.ControlServiceStub(channel).ListPins(
                pb.ListPinsRequest(), timeout=CALL_SECONDS_MAX
            )
            found = [answer.pin for answer in answers]
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))
    if as_json:
        print(json.dumps({"pins": [pin_data(each) for each in found]}, indent=2))
    elif found:
        _show(found)
    else:
        print("Nothing is pinned.")


def pin_data(found: pb.Pin) -> dict[str, Any]:
    """One object; units are in the names."""
    return {
        "pin_id": found.pin_id,
        "owner": found.owner,
        "namespace_id": found.namespace_id.hex(),
        "block_hash": found.block_hash.hex(),
        "block_count": found.block_count,
        "payload_bytes": found.payload_bytes,
        "cached_count": found.cached_count,
        "ssd_count": found.ssd_count,
        "create_time": found.create_time.ToJsonString(),
        "expire_time": found.expire_time.ToJsonString(),
        "survives_restart": found.survives_restart,
    }


def _show(found: list[pb.Pin]) -> None:
    """A table, or where the screen is too narrow a list of lines for each: no digit is cut."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, justify in _COLUMNS.items():
        table.add_column(name, justify=justify, no_wrap=True)
    rows = [_cells(each) for each in found]
    for row in rows:
        table.add_row(*map(escape, row))
    if (
        console.measure(table, options=console.options.update(width=10_000)).maximum
        <= console.width
    ):
        console.print(table)
        return
    for place, row in enumerate(rows):
        if place:
            print()
        for name, cell in zip(_COLUMNS, row, strict=True):
            print(f"{name:<7}{cell}")


def _cells(each: pb.Pin) -> list[str]:
    return [
        each.pin_id,
        each.owner,
        f"{each.block_count:,}",
        decimal(each.payload_bytes),
        _share(each.cached_count, each.block_count),
        _share(each.ssd_count, each.block_count),
        datetime.fromtimestamp(each.expire_time.seconds, UTC).strftime("%Y-%m-%d %H:%MZ"),
    ]


def _share(count: int, whole: int) -> str:
    return "all" if count == whole else f"{count:,}" if count else "-"


def _duration(text: str) -> Duration:
    """Raises typer.Exit."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if found is None:
        misused("pin", "--for takes a number and s, m, h or d: 90s, 30m, 12h, 7d")
    return Duration(seconds=int(found[1]) * _UNITS[found[2]])
