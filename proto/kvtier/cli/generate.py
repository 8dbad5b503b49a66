"""`kvtier generate` and `kvtier chat`: inference from a terminal, usage and cost shown.

The answer goes to standard output and nothing else does; what it used and cost, and every problem,
go to standard error. Main thread.
"""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, NoReturn

import grpc
import typer
from rich.console import Console

from kvtier.cli.cache_options import CacheTimeout, CacheUse, OneOff, TtlClass, Use, set_cache
from kvtier.cli.channel import open_channel
from kvtier.cli.cost import Cost, ask_cost
from kvtier.cli.inference import CALL_SECONDS_MAX, Reply, attempt
from kvtier.cli.logprob_view import logprob_table
from kvtier.cli.problems import TLS_HINT, spoken
from kvtier.cli.reply_view import reply_data, usage_lines, visible
from kvtier.cli.sampling_options import (
    FrequencyPenalty,
    Logprobs,
    MinP,
    PresencePenalty,
    SamplingWords,
    Seed,
    Stop,
    StopToken,
    Temperature,
    TopK,
    TopP,
    set_sampling,
)
from kvtier.errors import read_error
from kvtier.v1 import inference_pb2

__all__ = ["chat", "generate"]

Address = Annotated[
    str,
    typer.Option("--address", help="The worker, HOST:PORT.", envvar="KVTIER_INFERENCE_ADDRESS"),
]
Billing = Annotated[
    str,
    typer.Option(
        "--billing",
        help="The billing service that is asked for the cost, HOST:PORT; '' asks none.",
        envvar="KVTIER_USAGE_ADDRESS",
    ),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Who asks, and pays.")]
Project = Annotated[str, typer.Option("--project", help="Who asks, within the tenant.")]
User = Annotated[str, typer.Option("--user", help="Who asks, within the project.")]


class Scope(StrEnum):
    """Values of --cache-scope."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    USER = "user"


CacheScope = Annotated[
    Scope | None,
    typer.Option("--cache-scope", help="Share cached blocks within this only."),
]
Priority = Annotated[
    int | None,
    typer.Option(
        "--priority", min=-2, max=2, help="The higher goes first, as far as it is granted."
    ),
]
Adapter = Annotated[
    str, typer.Option("--adapter", help="One of the worker's adapters; by itself, none.")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=1, max=2**31 - 1, help="Tokens to generate at most.")
]
Name = Annotated[
    str,
    typer.Option("--name", help="Your name for the request: its entry in the ledger carries it."),
]

_SCOPES = {
    None: inference_pb2.CACHE_SCOPE_UNSPECIFIED,
    Scope.ORGANISATION: inference_pb2.CACHE_SCOPE_ORGANISATION,
    Scope.PROJECT: inference_pb2.CACHE_SCOPE_PROJECT,
    Scope.USER: inference_pb2.CACHE_SCOPE_USER,
}

DEFAULT_ADDRESS = "127.0.0.1:7421"
DEFAULT_BILLING = "127.0.0.1:7431"
FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    address: Address = DEFAULT_ADDRESS,
    billing: Billing = DEFAULT_BILLING,
    tenant: Tenant = "default",
    project: Project = "",
    user: User = "",
    cache_scope: CacheScope = None,
    cache: CacheUse = Use.DEFAULT,
    cache_timeout: CacheTimeout = None,
    one_off: OneOff = False,
    ttl_class: TtlClass = "",
    priority: Priority = None,
    adapter: Adapter = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    stop: Stop = None,
    stop_token: StopToken = None,
    logprobs: Logprobs = None,
    name: Name = "",
    raw: Annotated[bool, typer.Option("--raw", help="Send text, not a chat message.")] = False,
    json_output: Annotated[
        bool,
        typer.Option("--json", help="One JSON object instead: text, usage, cost, logprobs, error."),
    ] = False,
) -> None:
    """Complete one prompt; show what was reused and what it costs."""
    text = _prompt_text(prompt)
    request = _request(tenant, project, user, cache_scope, priority, max_tokens)
    request.client_request_id = _checked(name)
    request.adapter = _checked(adapter)
    words = SamplingWords(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(_checked(each) for each in stop or ()),
        stop_token_ids=tuple(stop_token or ()),
        logprobs=logprobs,
    )
    set_sampling(request, words)
    set_cache(request, cache, cache_timeout, one_off, _checked(ttl_class))
    if raw:
        request.text = text
    else:
        request.chat.messages.add(role="user", content=text)
    with open_channel(address) as channel:
        try:
            reply, error = _answer(channel, request, shown=not json_output)
        except KeyboardInterrupt:
            print("kvtier generate: stopped; what was computed is charged", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    if reply.usage.request_id:
        cost = _cost(billing, reply)
        if json_output:
            wire = None if error is None else read_error(error)
            data = reply_data(reply, cost, wire, logprobs is not None)
            print(json.dumps(data, ensure_ascii=False))
        else:
            _show_logprobs(reply)
            _show_usage(reply, cost)
    if error is not None:
        _fail("generate", error, address)


def chat(
    address: Address = DEFAULT_ADDRESS,
    billing: Billing = DEFAULT_BILLING,
    tenant: Tenant = "default",
    project: Project = "",
    user: User = "",
    cache_scope: CacheScope = None,
    cache: CacheUse = Use.DEFAULT,
    cache_timeout: CacheTimeout = None,
    one_off: OneOff = False,
    ttl_class: TtlClass = "",
    priority: Priority = None,
    adapter: Adapter = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    system: Annotated[str, typer.Option("--system", help="System message.")] = "",
) -> None:
    """Talk to the model; Ctrl-C stops an answer, an empty line or Ctrl-D ends."""
    history = inference_pb2.ChatPrompt()
    if system:
        history.messages.add(role="system", content=_checked(system))
    with open_channel(address) as channel:
        while line := _next_line():
            history.messages.add(role="user", content=line)
            request = _request(tenant, project, user, cache_scope, priority, max_tokens)
            request.adapter = _checked(adapter)
            set_sampling(request, SamplingWords(temperature=temperature))
            set_cache(request, cache, cache_timeout, one_off, _checked(ttl_class))
            request.chat.CopyFrom(history)
            try:
                reply, error = _answer(channel, request, shown=True)
            except KeyboardInterrupt:
                print("stopped; what was computed is charged", file=sys.stderr)
                del history.messages[-1]
                continue
            history.messages.add(role="assistant", content=reply.texts[0])
            if reply.usage.request_id:
                _show_usage(reply, _cost(billing, reply))
            if error is not None:
                _fail("chat", error, address)


def _request(
    tenant: str,
    project: str,
    user: str,
    cache_scope: Scope | None,
    priority: int | None,
    max_tokens: int,
) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        tenant_id=_checked(tenant),
        project_id=_checked(project),
        user_id=_checked(user),
        cache_scope=_SCOPES[cache_scope],
        priority=priority,
        max_completion_tokens=max_tokens,
    )


def _answer(
    channel: grpc.Channel, request: inference_pb2.GenerateRequest, shown: bool
) -> tuple[Reply, grpc.RpcError | None]:
    """Streams the answer to standard output when it is to be `shown`; the error it ended with."""
    # A cold prompt computes for seconds before its first token; say so where someone watches.
    with Console(stderr=True).status("computing the prompt") as waiting:
        if not shown:
            return attempt(channel, request)
        keep: Callable[[str], str] = visible if sys.stdout.isatty() else str
        begun = False

        def show(_sample: int, text: str) -> None:
            nonlocal begun
            begun = True
            waiting.stop()
            print(keep(text), end="", flush=True)

        try:
            return attempt(channel, request, show)
        finally:
            waiting.stop()
            if begun:
                print(flush=True)


def _cost(billing: str, reply: Reply) -> Cost:
    if not billing:
        return Cost(problem="not asked for")
    return ask_cost(billing, reply.model, reply.usage)


def _show_usage(reply: Reply, cost: Cost) -> None:
    console = Console(stderr=True)
    for line in usage_lines(reply, cost):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _show_logprobs(reply: Reply) -> None:
    if reply.logprobs[0]:
        Console(stderr=True).print(logprob_table(reply.logprobs[0]))


def _prompt_text(prompt: str) -> str:
    if prompt != "-":
        return _checked(prompt)
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        print(
            f"kvtier generate: standard input is not UTF-8 text (byte {error.start}); convert it",
            file=sys.stderr,
        )
        raise typer.Exit(MISUSED) from None


def _checked(text: str) -> str:
    """`text`, unless the shell gave bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("not UTF-8 text") from None
    return text


def _next_line() -> str:
    """What the person types next; empty when there is no more."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` editing and history)
    try:
        return _checked(input("> " if sys.stdin.isatty() else "").strip())
    except (EOFError, KeyboardInterrupt):
        return ""


def _fail(command: str, error: grpc.RpcError, address: str) -> NoReturn:
    print(f"kvtier {command}: {_explain(error, address)}", file=sys.stderr)
    raise typer.Exit(FAILED)


def _explain(error: grpc.RpcError, address: str) -> str:
    wire = read_error(error)
    if wire.reason == "TENANT_UNKNOWN":
        return f"{wire.reason}: {wire.message}; choose one with --tenant (kvtier up --tenants)"
    return spoken(
        wire,
        {
            grpc.StatusCode.UNAVAILABLE: (
                f"WORKER_UNREACHABLE: no worker answers at {address}, or it ended; start one"
                f" (kvtier up), name another with --address, or, {TLS_HINT}"
            ),
            grpc.StatusCode.DEADLINE_EXCEEDED: (
                f"DEADLINE: no whole answer from {address} in {CALL_SECONDS_MAX:.0f} s; ask for"
                " fewer tokens, or look into the worker's log"
            ),
            # Of gRPC itself: no service is told of a message that large, so no reason comes back.
            grpc.StatusCode.RESOURCE_EXHAUSTED: (
                f"{wire.code.name}: {wire.message}; shorten the prompt"
            ),
        },
    )
