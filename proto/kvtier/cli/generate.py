"""`kvtier generate` and `kvtier chat`: inference from a terminal, with what was reused shown."""

import json
import sys
from typing import Annotated, NoReturn

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from kvtier.cli.inference import Reply, ask
from kvtier.errors import read_error
from kvtier.v1 import inference_pb2

__all__ = ["chat", "generate"]

Address = Annotated[str, typer.Option("--address", help="The worker's address.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Who asks.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Tokens to generate.")]

DEFAULT_ADDRESS = "127.0.0.1:7421"


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "default",
    max_tokens: MaxTokens = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Send text, not a chat message.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Complete one prompt and show what was reused."""
    text = sys.stdin.read() if prompt == "-" else prompt
    request = inference_pb2.GenerateRequest(
        tenant_id=tenant,
        max_completion_tokens=max_tokens,
        sampling=inference_pb2.SamplingParameters(temperature=temperature),
    )
    if raw:
        request.text = text
    else:
        request.chat.messages.add(role="user", content=text)
    with grpc.insecure_channel(address) as channel:
        try:
            reply = ask(channel, request, None if json_output else _print_text)
        except grpc.RpcError as error:
            _fail(error, address)
    if json_output:
        usage = MessageToDict(
            reply.usage, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        print(json.dumps({"text": reply.texts[0], "usage": usage}))
    else:
        print()
        _show_usage(reply)


def chat(
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "default",
    max_tokens: MaxTokens = 64,
    system: Annotated[str, typer.Option("--system", help="System message.")] = "",
) -> None:
    """Talk to the model; an empty line or Ctrl-D ends."""
    history = inference_pb2.ChatPrompt()
    if system:
        history.messages.add(role="system", content=system)
    with grpc.insecure_channel(address) as channel:
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                line = ""
            if not line:
                return
            history.messages.add(role="user", content=line)
            request = inference_pb2.GenerateRequest(
                tenant_id=tenant, max_completion_tokens=max_tokens, chat=history
            )
            try:
                reply = ask(channel, request, _print_text)
            except grpc.RpcError as error:
                _fail(error, address)
            history.messages.add(role="assistant", content=reply.texts[0])
            print()
            _show_usage(reply)


def _print_text(_sample: int, text: str) -> None:
    print(text, end="", flush=True)


def _show_usage(reply: Reply) -> None:
    tokens = reply.usage.tokens
    tiers = tokens.hit_tokens_by_tier
    by_tier = ", ".join(
        f"{count} {name}"
        for name, count in (
            ("GPU", tiers.gpu),
            ("host", tiers.host),
            ("SSD", tiers.ssd),
            ("shared", tiers.shared),
        )
        if count
    )
    Console(stderr=True).print(
        f"prompt {tokens.prompt_tokens} = {tokens.hit_tokens} hit"
        f"{f' ({by_tier})' if by_tier else ''} + {tokens.miss_tokens} miss,"
        f" completion {tokens.completion_tokens}, TTFT {reply.ttft_seconds * 1000:.0f} ms",
        style="dim",
        markup=False,
        highlight=False,
    )


def _fail(error: grpc.RpcError, address: str) -> NoReturn:
    wire = read_error(error)
    if wire.reason:
        print(f"kvtier: {wire.message} [{wire.reason}]", file=sys.stderr)
    else:
        print(
            f"kvtier: no worker answers at {address} ({wire.code.name}); start one with"
            " `kvtier up`, or name another with --address",
            file=sys.stderr,
        )
    raise typer.Exit(1)
