"""`kvtier replay TRACE`: what a policy and a capacity are worth on recorded requests.

Standard output has the answer alone, a table or with --json one object; progress and errors go to
standard error. Exit status 1 when the trace cannot be read or played, 2 for a wrong command line.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from cache_service.replay.cache import WriteWhen
from cache_service.replay.curves import curves
from cache_service.replay.options import (
    Amount,
    ReplayOptions,
    parse_admission,
    parse_amount,
    parse_bytes,
)
from cache_service.replay.plot import PlotError, check_plot, draw
from cache_service.replay.prices import PriceBookUnusableError, read_prices
from cache_service.replay.progress import progress_of
from cache_service.replay.run import OptionsError, replay
from cache_service.replay.tables import result_table
from cache_service.replay.trace import TraceError, read_trace
from storage.policy.choice import DEFAULT_POLICY, POLICIES

__all__ = ["app"]

app = typer.Typer(
    help="Play a trace through the policies that serve.",
    invoke_without_command=True,
    # A group's own arguments end its options unless it is told otherwise.
    context_settings={"allow_interspersed_args": True},
    subcommand_metavar="",
)

DEFAULT_CAPACITY = "10%"

T = TypeVar("T")


@app.callback()
def replay_trace(
    context: typer.Context,
    trace: Annotated[Path, typer.Argument(help="JSON lines, plain or gzip.", show_default=False)],
    policy: Annotated[
        str, typer.Option(help=f"What leaves first: {', '.join(POLICIES)}.")
    ] = DEFAULT_POLICY,
    capacity: Annotated[
        str, typer.Option(metavar="BLOCKS|N%", help="One tier of so many blocks. [default: 10%]")
    ] = "",
    host: Annotated[
        str, typer.Option(metavar="BLOCKS|N%", help="Host memory, in front of --ssd.")
    ] = "",
    ssd: Annotated[str, typer.Option(metavar="BLOCKS|N%", help="The SSD, behind --host.")] = "",
    admission: Annotated[
        str,
        typer.Option(
            help="What may be written to the SSD: all; first_new:N, the first N new blocks of a"
            " request and those refused once before."
        ),
    ] = "all",
    write_when: Annotated[
        WriteWhen,
        typer.Option(help="Written when it leaves host memory, or as soon as it is committed."),
    ] = WriteWhen.LEAVING,
    write_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes a day that may be written, 500GB say.")
    ] = "",
    block_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one block. [default: 128KiB a token]")
    ] = "",
    segment_blocks: Annotated[
        int | None, typer.Option(min=1, help="The SSD as segments of so many blocks each.")
    ] = None,
    price_book: Annotated[
        Path | None, typer.Option(help="A price book, to say what was saved.")
    ] = None,
    model: Annotated[str, typer.Option(help="Whose prices of the price book.")] = "*",
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw hit rate against capacity for every policy: a .png or .svg file."),
    ] = None,
    optimum: Annotated[
        bool, typer.Option(help="Say too what the best possible would have been.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Play a trace through the policies that serve: hit rate, SSD writes, savings."""
    if not ssd:
        _refuse_without_ssd(context)
    host_room, ssd_room = _tiers(capacity, host, ssd)
    options = ReplayOptions(
        policy=_parsed("--policy", _policy, policy),
        host=host_room,
        ssd=ssd_room,
        admission=_parsed("--admission", parse_admission, admission),
        write_when=write_when,
        write_budget_bytes=_size("--write-budget", write_budget),
        block_bytes=_size("--block-bytes", block_bytes),
        segment_blocks=segment_blocks,
    )
    try:
        _play(trace, options, price_book, model, plot, optimum, as_json)
    except (TraceError, OptionsError, PriceBookUnusableError, PlotError) as error:
        print(f"kvtier replay: {error.reason}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _play(
    path: Path,
    options: ReplayOptions,
    price_book: Path | None,
    model: str,
    plot: Path | None,
    optimum: bool,
    as_json: bool,
) -> None:
    prices = read_prices(price_book, model) if price_book is not None else None
    if plot is not None:
        check_plot(plot)
    found = None
    with progress_of(Console(stderr=True)) as step:
        trace = read_trace(path, lambda done, total: step("read", done, total))
        result = replay(trace, options, optimum, step)
        if plot is not None:
            found = curves(trace, step)
            draw(found, trace.name, trace.unique_blocks, plot)
    if prices is not None:
        savings = prices.savings(result.input_tokens, result.hit_tokens)
        result = dataclasses.replace(result, savings=savings)
    if as_json:
        print(json.dumps(result.data() | ({} if found is None else {"curves": found}), indent=2))
    else:
        Console().print(result_table(result))


def _tiers(capacity: str, host: str, ssd: str) -> tuple[Amount, Amount | None]:
    if capacity and (host or ssd):
        raise typer.BadParameter("is one tier; --host and --ssd are two", param_hint="--capacity")
    if ssd and not host:
        raise typer.BadParameter("goes with --host", param_hint="--ssd")
    first = host or capacity or DEFAULT_CAPACITY
    hint = "--host" if host else "--capacity"
    return (
        _parsed(hint, parse_amount, first),
        _parsed("--ssd", parse_amount, ssd) if ssd else None,
    )


def _refuse_without_ssd(context: typer.Context) -> None:
    """Options about the SSD say nothing without one."""
    for name in ("admission", "write_when", "write_budget", "segment_blocks"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            hint = f"--{name.replace('_', '-')}"
            raise typer.BadParameter("goes with --ssd", param_hint=hint)


def _policy(name: str) -> str:
    name = name.replace("-", "_")
    if name not in POLICIES:
        raise ValueError(f"there is {', '.join(POLICIES)}, not {name!r}")
    return name


def _size(option: str, text: str) -> int | None:
    return _parsed(option, parse_bytes, text) if text else None


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
