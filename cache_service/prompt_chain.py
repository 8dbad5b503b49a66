"""What commands that take a prompt have in common: its options, and its chain, asked of its worker.

A prompt's blocks are named by its worker, which alone has the secret for it. Blocks until it has
answered.
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import grpc
import typer

from cache_service.command_errors import cache_problem, worker_problem
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.keys import HASH_BYTES
from kvtier.v1 import describe_pb2, describe_pb2_grpc, explain_pb2, explain_pb2_grpc

__all__ = [
    "DEFAULT_CACHE",
    "DEFAULT_WORKER",
    "AdapterOption",
    "AddressOption",
    "CachedEnd",
    "JsonOption",
    "ProjectOption",
    "PromptError",
    "RawOption",
    "Scope",
    "ScopeOption",
    "SystemOption",
    "TenantOption",
    "UserOption",
    "WorkerOption",
    "cached_end",
    "described",
    "prompt_request",
]

DEFAULT_CACHE = "127.0.0.1:7411"
DEFAULT_WORKER = "127.0.0.1:7421"
CALL_SECONDS_MAX = 10.0


class Scope(StrEnum):
    """Values of --cache-scope."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    USER = "user"


AddressOption = Annotated[str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead.")]
WorkerOption = Annotated[
    str, typer.Option(help="The worker, HOST:PORT or unix:PATH.", envvar="KVTIER_INFERENCE_ADDRESS")
]
TenantOption = Annotated[str, typer.Option(help="Whose prompt it is.")]
ProjectOption = Annotated[str, typer.Option(help="Whose, within the tenant.")]
UserOption = Annotated[str, typer.Option(help="Whose, within the project.")]
ScopeOption = Annotated[
    Scope | None, typer.Option("--cache-scope", help="As the request would say it.")
]
AdapterOption = Annotated[str, typer.Option(help="Of the worker, for whose requests it is.")]
SystemOption = Annotated[str, typer.Option(help="The system message before the prompt.")]
RawOption = Annotated[bool, typer.Option("--raw", help="The prompt is text, no chat message.")]


class PromptError(Exception):
    """The message says what to do. `misused`: the command made no sense."""

    def __init__(self, message: str, *, misused: bool) -> None:
        super().__init__(message)
        self.misused = misused


def prompt_request(
    prompt: str,
    tenant: str,
    project: str,
    user: str,
    cache_scope: Scope | None,
    system: str,
    *,
    raw: bool,
    adapter: str,
) -> describe_pb2.DescribePromptRequest:
    """'-' reads standard input. Raises PromptError."""
    if raw and system:
        raise PromptError("--raw text has no system message", misused=True)
    asked = describe_pb2.DescribePromptRequest(
        tenant_id=tenant,
        project_id=project,
        user_id=user,
        adapter=adapter,
        cache_scope=f"CACHE_SCOPE_{(cache_scope or 'unspecified').upper()}",
    )
    text = _text(prompt)
    if raw:
        asked.text = text
    else:
        if system:
            asked.chat.messages.add(role="system", content=system)
        asked.chat.messages.add(role="user", content=text)
    return asked


def described(
    asked: describe_pb2.DescribePromptRequest, worker: str
) -> describe_pb2.DescribePromptResponse:
    """The prompt's chain. Raises PromptError."""
    with open_channel(worker) as channel:
        try:
            return describe_pb2_grpc.DescribeServiceStub(channel).DescribePrompt(
                asked, timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            raise PromptError(worker_problem(read_error(error), worker), misused=False) from None


def _text(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8 text (byte {error.start}); convert it", misused=True
        ) from None


@dataclass(frozen=True, slots=True)
class CachedEnd:
    """Where the cached beginning of a prompt ends."""

    namespace_id: bytes
    block_hash: bytes
    """Of its last cached block."""
    cached_count: int
    block_count: int
    """Whole blocks of the prompt."""


def cached_end(chain: describe_pb2.DescribePromptResponse, address: str) -> CachedEnd:
    """As far as the cache service at `address` has the prompt. Raises PromptError when it has none
    of it, or cannot be asked."""
    hashes, count = chain.block_hashes, 0
    if hashes:
        request = explain_pb2.ExplainPrefixRequest(
            namespace_id=chain.namespace_id, block_hashes=hashes
        )
        with open_channel(address) as channel:
            stub = explain_pb2_grpc.ExplainServiceStub(channel)
            try:
                count = stub.ExplainPrefix(request, timeout=CALL_SECONDS_MAX).present_count
            except grpc.RpcError as error:
                problem = cache_problem(read_error(error), address)
                raise PromptError(problem, misused=False) from None
    if not count:
        raise PromptError(
            "BLOCK_NOT_CACHED: no whole block of the prompt is cached; send the prompt first",
            misused=False,
        )
    last = hashes[(count - 1) * HASH_BYTES : count * HASH_BYTES]
    return CachedEnd(chain.namespace_id, last, count, len(hashes) // HASH_BYTES)
