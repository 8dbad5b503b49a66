"""`kvtier cache purge`: has a cache service take blocks out of every tier; shows the receipt.

Standard output has the receipt alone, or with --json one object. Exit status 1 when the service
refused or its SSD has not forgotten durably, 2 when the command makes no sense.
"""

import json
from typing import Annotated, Any

import grpc
import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cache_service.command_ends import digits, fail, misused
from cache_service.command_errors import cache_problem
from cache_service.prompt_chain import (
    DEFAULT_CACHE,
    DEFAULT_WORKER,
    AdapterOption,
    AddressOption,
    JsonOption,
    ProjectOption,
    PromptError,
    RawOption,
    ScopeOption,
    SystemOption,
    UserOption,
    WorkerOption,
    described,
    prompt_request,
)
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.keys import HASH_BYTES
from kvtier.scopes import MalformedScopeError, ScopePath
from kvtier.v1 import block_pb2, control_pb2_grpc
from kvtier.v1 import control_pb2 as pb

__all__ = ["purge", "receipt_data"]

CALL_SECONDS_MAX = 600.0
KEYS_SHOWN = 16


def purge(
    prompt: Annotated[
        str,
        typer.Argument(
            help="What begins with this prompt; '-' reads standard input. Or give an option that"
            " says what."
        ),
    ] = "",
    block: Annotated[
        str,
        typer.Option(help="This block and what continues it: 64 digits; with --namespace."),
    ] = "",
    request: Annotated[str, typer.Option(help="What this request stored, by its id.")] = "",
    session: Annotated[str, typer.Option(help="What this session stored, by its id.")] = "",
    namespace: Annotated[
        str, typer.Option(help="All blocks of this namespace: 64 hexadecimal digits.")
    ] = "",
    everything: Annotated[bool, typer.Option("--everything", help="All blocks.")] = False,
    tenant: Annotated[
        str,
        typer.Option(
            help="With a prompt: who asks, by default 'default'. Without: all that the tenant owns,"
            " or with --project and --user what these own."
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be taken out.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what is pinned; ends those pins.")
    ] = False,
    shred: Annotated[
        bool,
        typer.Option(
            "--shred",
            help="Destroy the data keys too: no copy of the SSD's bytes opens any more. With"
            " --tenant or --everything.",
        ),
    ] = False,
    address: AddressOption = DEFAULT_CACHE,
    worker: WorkerOption = DEFAULT_WORKER,
    project: ProjectOption = "",
    user: UserOption = "",
    cache_scope: ScopeOption = None,
    adapter: AdapterOption = "",
    system: SystemOption = "",
    raw: RawOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take blocks out of every tier, with all that continues them, and show the receipt.

    Of a prompt: its last whole block and what continues that; what is before it stays. Pages of
    workers are not the cache's and keep what they have.
    """
    target = _target(block, request, session, namespace, everything)
    if tenant and not prompt and target is None:
        target = pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner=_owner(tenant, project, user))
    whole = everything or (tenant and not (prompt or project or user))
    if shred and not (target is not None and whole):
        misused("purge", "--shred is of a whole tenant or of --everything: those have data keys")
    if bool(prompt) == (target is not None):
        misused(
            "purge",
            "say what to purge, one of: a prompt, --block with --namespace, --request, --session,"
            " --namespace, --tenant, --everything",
        )
    if target is None:
        try:
            who = (tenant or "default", project, user)
            asked = prompt_request(prompt, *who, cache_scope, system, raw=raw, adapter=adapter)
            chain = described(asked, worker)
        except PromptError as error:
            misused("purge", str(error)) if error.misused else fail(str(error))
        if not chain.block_hashes:
            fail("TOO_SHORT: the prompt has no whole block; nothing of it is ever cached")
        target = pb.PurgeTarget(
            kind=pb.PURGE_KIND_PREFIX,
            namespace_id=chain.namespace_id,
            block_hash=chain.block_hashes[-HASH_BYTES:],
        )
    asked_for = pb.PurgeBlocksRequest(target=target, dry_run=dry_run, force=force, shred=shred)
    receipt = _purged(address, asked_for)
    if as_json:
        print(json.dumps(receipt_data(receipt), indent=2))
    else:
        _show(receipt)
    if receipt.shred.destruction == pb.KEY_DESTRUCTION_PENDING:
        fail(
            "KEYS_PENDING: the disk did not take that data keys are destroyed, or not in time: they"
            " may still be there; shred again when it answers"
        )
    if receipt.ssd_forgetting == pb.SSD_FORGETTING_PENDING:
        fail(
            "SSD_PENDING: the blocks are found no more, and the SSD has not forgotten them durably:"
            " a crash now may bring some back; purge again when it answers"
        )
    if receipt.shared_forgetting == pb.SHARED_FORGETTING_PENDING:
        fail(
            "SHARED_PENDING: the blocks left this host, and the shared tier did not delete them in"
            " time: this host tries again until it is stopped, others may still load them; purge"
            " again when it answers"
        )


def _target(
    block: str, request: str, session: str, namespace: str, everything: bool
) -> pb.PurgeTarget | None:
    """None when no option names one. Raises typer.Exit."""
    namespace_id = digits("purge", "--namespace", namespace) if namespace else b""
    targets = []
    if block:
        if not namespace:
            misused("purge", "--block needs --namespace; the tree and the events have both")
        targets.append(
            pb.PurgeTarget(
                kind=pb.PURGE_KIND_PREFIX,
                namespace_id=namespace_id,
                block_hash=digits("purge", "--block", block),
            )
        )
    elif namespace:
        targets.append(pb.PurgeTarget(kind=pb.PURGE_KIND_NAMESPACE, namespace_id=namespace_id))
    if request:
        targets.append(pb.PurgeTarget(kind=pb.PURGE_KIND_REQUEST, of_request_id=request))
    if session:
        targets.append(pb.PurgeTarget(kind=pb.PURGE_KIND_SESSION, of_session_id=session))
    if everything:
        targets.append(pb.PurgeTarget(kind=pb.PURGE_KIND_EVERYTHING))
    if len(targets) > 1:
        misused("purge", "say one thing to purge, not several at once")
    return targets[0] if targets else None


def _owner(tenant: str, project: str, user: str) -> str:
    """Raises typer.Exit."""
    try:
        return str(ScopePath(tenant, project, user))
    except MalformedScopeError as error:
        misused("purge", str(error))


def _purged(address: str, request: pb.PurgeBlocksRequest) -> pb.PurgeReceipt:
    with open_channel(address) as channel:
        try:
            return (
                control_pb2_grpc.ControlServiceStub(channel)
                .PurgeBlocks(request, timeout=CALL_SECONDS_MAX)
                .receipt
            )
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))


def receipt_data(receipt: pb.PurgeReceipt) -> dict[str, Any]:
    """One object; units are in the names."""
    target = receipt.target
    return {
        "purge_id": receipt.purge_id,
        "instance_id": receipt.instance_id,
        "kind": _word(pb.PurgeKind.Name(target.kind), "PURGE_KIND_"),
        "namespace_id": target.namespace_id.hex(),
        "block_hash": target.block_hash.hex(),
        "request_id": target.of_request_id,
        "session_id": target.of_session_id,
        "owner": target.of_owner,
        "dry_run": receipt.dry_run,
        "start_time": receipt.start_time.ToJsonString(),
        "end_time": receipt.end_time.ToJsonString(),
        "block_count": receipt.block_count,
        "copies": [
            {
                "tier": _word(block_pb2.Tier.Name(each.tier), "TIER_"),
                "copy_count": each.copy_count,
                "payload_bytes": each.payload_bytes,
            }
            for each in receipt.copies
        ],
        "held_count": receipt.held_count,
        "pin_count": receipt.pin_count,
        "hashes_sha256": receipt.hashes_sha256.hex(),
        "ssd_forgetting": _word(pb.SsdForgetting.Name(receipt.ssd_forgetting), "SSD_FORGETTING_"),
        "shared_forgetting": _word(
            pb.SharedForgetting.Name(receipt.shared_forgetting), "SHARED_FORGETTING_"
        ),
        "shared_left_count": receipt.shared_left_count,
        "shred": _shred_data(receipt.shred) if receipt.HasField("shred") else None,
    }


def _shred_data(shred: pb.Shred) -> dict[str, Any]:
    destroyed = shred.destroy_time.ToJsonString() if shred.HasField("destroy_time") else None
    return {
        "key_ids": [each.hex() for each in shred.key_ids],
        "destruction": _word(pb.KeyDestruction.Name(shred.destruction), "KEY_DESTRUCTION_"),
        "destroy_time": destroyed,
        "clear_count": shred.clear_count,
        "clear_segment_count": shred.clear_segment_count,
    }


def _show(receipt: pb.PurgeReceipt) -> None:
    console = Console()
    data = receipt_data(receipt)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=True)
    table.add_column("would leave" if receipt.dry_run else "taken out of", "blocks, each once")
    table.add_column("blocks", f"{receipt.block_count:,}", justify="right")
    table.add_column("bytes", "", justify="right")
    for each in data["copies"]:
        name = {"host": "host memory", "ssd": "SSD"}.get(each["tier"], each["tier"])
        table.add_row(name, f"{each['copy_count']:,}", decimal(each["payload_bytes"]))
    console.print(table)
    console.print()
    rows = [("SHA-256 of their hashes", data["hashes_sha256"])]
    if receipt.held_count:
        rows.append(("still held", f"{receipt.held_count:,}, found by nobody any more"))
    if receipt.pin_count:
        what = "name some of them; --force ends them" if receipt.dry_run else "ended"
        rows.append(("pins", f"{receipt.pin_count:,} {what}"))
    if receipt.HasField("shred"):
        rows += _shred_rows(receipt.shred)
    if not receipt.dry_run:
        rows.append(("SSD", _SSD_WORDS[receipt.ssd_forgetting]))
        rows.append(("shared tier", _SHARED_WORDS.get(receipt.shared_forgetting, "not said")))
        if receipt.shared_left_count:
            rows.append(("", f"{receipt.shared_left_count:,} blocks may still be in it"))
        rows.append(("purge", f"{receipt.purge_id}, {data['end_time']}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)


def _shred_rows(shred: pb.Shred) -> list[tuple[str, str]]:
    count = len(shred.key_ids)
    rows = [("data keys", f"{count:,} {_KEY_WORDS[shred.destruction]}")]
    rows += [("", each.hex()) for each in shred.key_ids[:KEYS_SHOWN]]
    if count > KEYS_SHOWN:
        rows.append(("", f"and {count - KEYS_SHOWN:,} more; --json has all"))
    if shred.clear_count:
        what = "of the blocks were on the SSD in clear: their bytes stay until overwritten"
        rows.append(("not shredded", f"{shred.clear_count:,} {what}"))
    if shred.clear_segment_count:
        what = "segments may hold bytes in clear, of whomever, from before encryption"
        rows.append(("in clear", f"{shred.clear_segment_count:,} {what}"))
    return rows


_KEY_WORDS = {
    pb.KEY_DESTRUCTION_DURABLE: "destroyed durably",
    pb.KEY_DESTRUCTION_PENDING: "perhaps not destroyed yet",
    pb.KEY_DESTRUCTION_NONE: "would be destroyed",
}

_SSD_WORDS = {
    pb.SSD_FORGETTING_DURABLE: "its index has forgotten them durably; bytes go with their segments",
    pb.SSD_FORGETTING_PENDING: "has not forgotten them durably yet",
    pb.SSD_FORGETTING_NONE: "there is none",
}


_SHARED_WORDS = {
    pb.SHARED_FORGETTING_WHOLE: "all of it was deleted; other hosts may write again what they have",
    pb.SHARED_FORGETTING_KNOWN: (
        "deleted what ends with one of them; other objects with them stay until it expires them"
    ),
    pb.SHARED_FORGETTING_PENDING: "has not deleted them yet",
    pb.SHARED_FORGETTING_NONE: "there is none",
}


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
