"""`kvtier cache explain`: why a prompt would hit or miss, or why a request did.

A prompt's blocks are named by its worker, which alone has the secret for it; the cache service says
what it has of them. Standard output has the answer alone, a table or with --json one object. Exit
status 1 when a service cannot be asked, 2 when the command makes no sense.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from cache_service.command_ends import fail, misused
from cache_service.command_errors import cache_problem
from cache_service.explain_text import acquire_lines, prompt_lines, prompt_table
from cache_service.explanation import Explanation, acquire_data
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
    TenantOption,
    UserOption,
    WorkerOption,
    described,
    prompt_request,
)
from cache_service.replay.prices import PriceBookUnusableError, read_prices
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.keys import HASH_BYTES
from kvtier.v1 import describe_pb2, explain_pb2, explain_pb2_grpc

__all__ = ["explain"]

CALL_SECONDS_MAX = 10.0


def explain(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; '-' reads standard input. Or give --request.")
    ] = "",
    request: Annotated[
        str, typer.Option("--request", help="A request's id: why did it hit or miss?")
    ] = "",
    address: AddressOption = DEFAULT_CACHE,
    worker: WorkerOption = DEFAULT_WORKER,
    tenant: TenantOption = "default",
    project: ProjectOption = "",
    user: UserOption = "",
    cache_scope: ScopeOption = None,
    adapter: AdapterOption = "",
    system: SystemOption = "",
    raw: RawOption = False,
    prices: Annotated[
        Path | None, typer.Option(help="A price book (TOML): what the input costs, and saves.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Why a prompt would hit or miss now, or why a request did. Changes nothing."""
    if bool(prompt) == bool(request):
        misused("explain", "give a prompt, or --request with a request's id")
    if raw and system:
        misused("explain", "--raw text has no system message")
    if request:
        _show_acquires(request, address, as_json)
        return
    try:
        asked = prompt_request(
            prompt, tenant, project, user, cache_scope, system, raw=raw, adapter=adapter
        )
        asked.other_scopes = True
        said = _explained(asked, address, worker, prices)
    except PromptError as error:
        misused("explain", str(error)) if error.misused else fail(str(error))
    if as_json:
        print(json.dumps(said.data(), indent=2))
        return
    console = Console()
    console.print(prompt_table(said))
    console.print()
    for line in prompt_lines(said):
        console.print(line, markup=False, highlight=False)


def _explained(
    asked: describe_pb2.DescribePromptRequest, address: str, worker: str, prices: Path | None
) -> Explanation:
    book = None
    prompt = described(asked, worker)
    if prices is not None:
        try:
            book = read_prices(prices, prompt.model)
        except PriceBookUnusableError as error:
            misused("explain", str(error))
    whole = tail = explain_pb2.ExplainPrefixResponse()
    if prompt.block_hashes:
        with open_channel(address) as channel:
            try:
                whole = tail = _ask(channel, prompt, 0)
                if prompt.resident_count:
                    tail = _ask(channel, prompt, prompt.resident_count)
            except grpc.RpcError as error:
                fail(cache_problem(read_error(error), address))
    said = Explanation(prompt, whole, tail, None)
    if book is None:
        return said
    savings = book.savings(prompt.prompt_tokens, said.hit_tokens)
    return Explanation(prompt, whole, tail, savings)


def _ask(
    channel: grpc.Channel, prompt: describe_pb2.DescribePromptResponse, first: int
) -> explain_pb2.ExplainPrefixResponse:
    """Of the chain from block `first` on. Raises grpc.RpcError."""
    chain = prompt.block_hashes[first * HASH_BYTES :]
    if not chain:
        return explain_pb2.ExplainPrefixResponse()
    others = (other.block_hashes for other in prompt.other_scopes)
    request = explain_pb2.ExplainPrefixRequest(
        namespace_id=prompt.namespace_id,
        block_hashes=chain,
        block_bytes=prompt.block_bytes,
        whole_units=prompt.whole_units,
        other_scope_hashes=[hashes[first * HASH_BYTES :] for hashes in others],
    )
    return explain_pb2_grpc.ExplainServiceStub(channel).ExplainPrefix(
        request, timeout=CALL_SECONDS_MAX
    )


def _show_acquires(request_id: str, address: str, as_json: bool) -> None:
    with open_channel(address) as channel:
        try:
            found = explain_pb2_grpc.ExplainServiceStub(channel).ExplainAcquire(
                explain_pb2.ExplainAcquireRequest(request_id=request_id), timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            fail(cache_problem(read_error(error), address))
    if as_json:
        data: dict[str, Any] = {"acquires": [acquire_data(each) for each in found.acquires]}
        print(json.dumps(data, indent=2))
        return
    console = Console()
    for record in found.acquires:
        for line in acquire_lines(record):
            console.print(line, markup=False, highlight=False)
