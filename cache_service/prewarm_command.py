"""`kvtier cache prewarm`: a prompt's cached beginning into host memory, before it is asked for.

Standard output has the answer alone, a line or with --json one object; progress goes to standard
error. Exit status 1 when it ended early, was refused or cannot be asked, 2 when the command makes
no sense.
"""

import json
from typing import Annotated, Any

import grpc
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_service.command_ends import FAILED, fail, misused
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
from kvtier.blocks import MissReason
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.v1 import control_pb2 as pb
from kvtier.v1 import control_pb2_grpc

__all__ = ["prewarm", "prewarm_data", "prewarm_text"]

PREWARM_SECONDS_MAX = 24 * 3600.0


def prewarm(
    prompt: PrefixArgument = "",
    block: BlockOption = "",
    namespace: NamespaceOption = "",
    limit: Annotated[
        str, typer.Option("--max", help="At most so much, like 2GiB; 0: a quarter of the memory.")
    ] = "0",
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
    """Bring a prompt's cached beginning from the SSD into host memory.

    Its reads wait their turn behind requests. What it brought leaves like any block.
    """
    chosen = PrefixChoice(
        prompt, block, namespace, tenant, project, user, cache_scope, system, raw, adapter
    )
    chosen.check("prewarm")
    request = pb.PrewarmPrefixRequest(bytes_max=_bytes(limit))
    end = chosen.end("prewarm", worker, address)
    request.namespace_id, request.block_hash = end.namespace_id, end.block_hash
    last = pb.PrewarmPrefixResponse()
    with open_channel(address) as channel:
        call = control_pb2_grpc.ControlServiceStub(channel).PrewarmPrefix(
            request, timeout=PREWARM_SECONDS_MAX
        )
        try:
            last = _shown(call)
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))
        finally:
            call.cancel()
    print(json.dumps(prewarm_data(last), indent=2) if as_json else prewarm_text(last))
    if last.miss_reason:
        raise typer.Exit(FAILED)


def _shown(messages: Any) -> pb.PrewarmPrefixResponse:
    last = pb.PrewarmPrefixResponse()
    columns = (
        TextColumn("prewarming"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks, {task.fields[loaded]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, loaded="")
        for last in messages:
            progress.update(
                task,
                completed=last.loaded_count,
                total=last.wanted_count,
                loaded=decimal(last.loaded_bytes),
            )
    return last


def prewarm_data(last: pb.PrewarmPrefixResponse) -> dict[str, Any]:
    """One flat object; units are in the names."""
    return {
        "block_count": last.block_count,
        "host_count": last.host_count,
        "wanted_count": last.wanted_count,
        "loaded_count": last.loaded_count,
        "loaded_bytes": last.loaded_bytes,
        "miss_reason": MissReason(last.miss_reason).name if last.miss_reason else None,
    }


def prewarm_text(last: pb.PrewarmPrefixResponse) -> str:
    """For people."""
    text = (
        f"{last.loaded_count:,} blocks ({decimal(last.loaded_bytes)}) brought into host memory;"
        f" {last.host_count:,} of {last.block_count:,} were there"
    )
    left = last.block_count - last.host_count - last.loaded_count
    if last.miss_reason:
        reason = MissReason(last.miss_reason).name.lower().replace("_", " ")
        return f"{text}; ended early, {left:,} blocks before its end: {reason}"
    return f"{text}; {left:,} are past the budget (--max)" if left else text


def _bytes(text: str) -> int:
    """Raises typer.Exit."""
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = -1
    if size < 0:
        misused("prewarm", "--max takes a size like 512MiB")
    return size
